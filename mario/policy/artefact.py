"""The policy artefact: a folder that is written atomically and verified when read.

Layout of the folder:

* ``policy.onnx``: input ``observation`` (N, …) of the manifest's kind; outputs ``logits`` float32
  (N, A) and ``value`` float32 (N,);
* ``policy.json``: a :class:`~mario.policy.manifest.PolicyManifest`, with the SHA-256 of every
  other file that serving or evaluation reads;
* ``golden.npz`` (optional): observations, and the answers of the trained network to them;
* ``model.zip`` (optional): the stable-baselines3 archive, for further training. It contains a
  pickle, so this module never opens it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from pydantic import ValidationError

from mario.config.evaluation import ActionSelection
from mario.errors import ArtefactError
from mario.files import whole_folder, write_synced
from mario.game.smb.actions import Action
from mario.game.smb.observations.contract import ObservationKind, Observations
from mario.policy.manifest import (
    Float32Array,
    ObservationSpec,
    ObservationStatistics,
    PolicyManifest,
    check_observations,
)

ONNX_FILE = "policy.onnx"
MANIFEST_FILE = "policy.json"
GOLDEN_FILE = "golden.npz"
MODEL_FILE = "model.zip"

MAX_MANIFEST_BYTES = 1 << 20
MAX_GOLDEN_OBSERVATIONS = 256


@dataclass(frozen=True)
class Golden:
    """Observations with the answers of the trained network.

    Attributes:
        observations: (G, …) of the manifest's kind, 1 ≤ G ≤ 256.
        logits: float32 (G, A).
        values: float32 (G,).
    """

    observations: Observations
    logits: Float32Array
    values: Float32Array


@dataclass(frozen=True)
class Artefact:
    """A verified policy artefact, held in memory so that its folder may be deleted.

    Attributes:
        folder: where it was read from.
        manifest: the parsed ``policy.json``.
        onnx: bytes of ``policy.onnx``; their SHA-256 is the manifest's.
        golden: recorded answers, or None where the folder has none.
        digest: SHA-256 of ``policy.json``; as that names the digests of the other files, it
            identifies the artefact as a whole.
    """

    folder: Path
    manifest: PolicyManifest
    onnx: bytes
    golden: Golden | None
    digest: str


def sha256_hex(data: bytes) -> str:
    """SHA-256 of ``data`` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def write_artefact(
    folder: Path | str,
    *,
    onnx: bytes | Path,
    actions: tuple[Action, ...] | list[Action],
    action_selection: ActionSelection,
    frame_skip: int,
    training_config_hash: str,
    git_commit: str,
    model_zip: bytes | Path | None = None,
    golden: Golden | None = None,
    observation: ObservationSpec | None = None,
    task: str | None = None,
    training_steps: int | None = None,
    training_statistics: ObservationStatistics | None = None,
    overwrite: bool = False,
) -> Artefact:
    """Write a policy artefact so that the folder is complete or absent.

    All files are written to a temporary sibling folder, synced, read back and verified; then the
    folder is renamed. With ``overwrite`` an existing folder is moved aside first and deleted last;
    a process that is killed between the two renames leaves no folder, never an incomplete one.

    Args:
        folder: path of the artefact.
        onnx: the network, as bytes or as a file to copy.
        actions: the actions in the order of the logits.
        action_selection: how an action is chosen from the logits.
        frame_skip: console frames that one decision lasts.
        training_config_hash: content hash of the experiment's configuration.
        git_commit: commit of the code that trained it.
        model_zip: the training archive, as bytes or as a file to copy.
        golden: observations and recorded answers.
        observation: what the network expects to see; pixels by default.
        task: the task it was trained for.
        training_steps: agent decisions it was trained on.
        training_statistics: observation distribution in training.
        overwrite: whether an existing folder is replaced.

    Returns:
        The artefact as it was read back.

    Raises:
        ArtefactError: the folder exists, a part is missing, the parts do not fit together, or the
            folder cannot be written.
    """
    target = Path(folder)
    if target.exists() and not overwrite:
        raise ArtefactError(
            f"{target}: got a folder that exists already; expected a new one; choose another "
            "folder or pass overwrite=True"
        )
    onnx_bytes = _content(onnx)
    observation = observation or ObservationSpec()
    golden_bytes = None if golden is None else _golden_bytes(golden, len(actions), observation.kind)
    try:
        manifest = PolicyManifest(
            actions=tuple(actions),
            action_selection=action_selection,
            frame_skip=frame_skip,
            observation=observation,
            training_config_hash=training_config_hash,
            git_commit=git_commit,
            onnx_sha256=sha256_hex(onnx_bytes),
            golden_sha256=None if golden_bytes is None else sha256_hex(golden_bytes),
            task=task,
            training_steps=training_steps,
            training_statistics=training_statistics,
        )
    except ValidationError as error:
        raise ArtefactError(f"policy manifest: {_one_line(error)}; correct the value") from error
    parts = {
        ONNX_FILE: onnx_bytes,
        GOLDEN_FILE: golden_bytes,
        MODEL_FILE: None if model_zip is None else _content(model_zip),
        MANIFEST_FILE: (manifest.model_dump_json(indent=2) + "\n").encode(),
    }
    return _write_parts(target, parts)


def _write_parts(target: Path, parts: Mapping[str, bytes | None]) -> Artefact:
    """Write the parts that are not None into a folder that is complete or absent; verify it."""
    try:
        with whole_folder(target) as aside:
            for name, content in parts.items():
                if content is not None:
                    write_synced(aside / name, content)
            artefact = load_artefact(aside)
    except OSError as error:
        raise ArtefactError(
            f"{target}: policy not written ({error.strerror or error}); expected disk space and "
            "permission to write; free disk space, then resume the run"
        ) from error
    return replace(artefact, folder=target)


def load_artefact(folder: Path | str) -> Artefact:
    """Read and verify a policy artefact; no pickle is opened.

    Args:
        folder: the artefact's folder.

    Returns:
        The artefact, all of it in memory.

    Raises:
        ArtefactError: a file is missing or unreadable, the manifest does not parse, a digest
            differs, or the golden answers do not fit the manifest.
    """
    source = Path(folder)
    if not source.is_dir():
        raise ArtefactError(
            f"{source}: got no such folder; expected a policy artefact; "
            "train and register a policy first or correct the path"
        )
    manifest_bytes = _read(source / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    try:
        manifest = PolicyManifest.model_validate_json(manifest_bytes)
    except ValidationError as error:
        raise ArtefactError(
            f"{source / MANIFEST_FILE}: {_one_line(error)}; export the policy again"
        ) from error
    onnx = _read(source / ONNX_FILE)
    _check_digest(source / ONNX_FILE, onnx, manifest.onnx_sha256)
    golden: Golden | None = None
    if manifest.golden_sha256 is not None:
        golden_bytes = _read(source / GOLDEN_FILE)
        _check_digest(source / GOLDEN_FILE, golden_bytes, manifest.golden_sha256)
        golden = _parse_golden(source / GOLDEN_FILE, golden_bytes, manifest)
    return Artefact(source, manifest, onnx, golden, sha256_hex(manifest_bytes))


def _check_digest(path: Path, data: bytes, expected: str) -> None:
    got = sha256_hex(data)
    if got != expected:
        raise ArtefactError(
            f"{path}: got SHA-256 {got}; expected {expected} (policy.json); the file is damaged "
            "or was replaced, download or export the artefact again"
        )


def _check_golden(where: str, golden: Golden, action_count: int, kind: ObservationKind) -> None:
    check_observations(golden.observations, kind)
    count = len(golden.observations)
    fits = (
        1 <= count <= MAX_GOLDEN_OBSERVATIONS
        and golden.logits.dtype == np.float32
        and golden.logits.shape == (count, action_count)
        and golden.values.dtype == np.float32
        and golden.values.shape == (count,)
        and bool(np.isfinite(golden.logits).all())
        and bool(np.isfinite(golden.values).all())
    )
    if not fits:
        raise ArtefactError(
            f"{where}: got {count} observations, logits {golden.logits.dtype} "
            f"{golden.logits.shape}, values {golden.values.dtype} {golden.values.shape}; expected "
            f"1..{MAX_GOLDEN_OBSERVATIONS} observations G with finite float32 logits "
            f"(G, {action_count}) and values (G,); record the golden answers again"
        )


def _golden_bytes(golden: Golden, action_count: int, kind: ObservationKind) -> bytes:
    _check_golden("golden answers", golden, action_count, kind)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        observations=golden.observations,
        logits=golden.logits,
        values=golden.values,
    )
    return buffer.getvalue()


def _parse_golden(path: Path, data: bytes, manifest: PolicyManifest) -> Golden:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            golden = Golden(arrays["observations"], arrays["logits"], arrays["values"])
    except (BadZipFile, KeyError, ValueError, OSError, EOFError) as error:
        raise ArtefactError(
            f"{path}: got an unreadable archive ({error}); expected arrays observations, logits "
            "and values; export the policy again"
        ) from error
    _check_golden(str(path), golden, len(manifest.actions), manifest.observation.kind)
    return golden


def _content(source: bytes | Path) -> bytes:
    return source if isinstance(source, bytes) else _read(source)


def _read(path: Path, limit_bytes: int | None = None) -> bytes:
    try:
        if limit_bytes is not None and path.stat().st_size > limit_bytes:
            raise ArtefactError(
                f"{path}: got {path.stat().st_size} bytes; expected at most {limit_bytes}; "
                "this is not a policy manifest"
            )
        return path.read_bytes()
    except OSError as error:
        raise ArtefactError(
            f"{path}: got no readable file ({error.strerror}); expected a part of a policy "
            "artefact; download or export the artefact again"
        ) from error


def _one_line(error: ValidationError) -> str:
    parts = []
    for item in error.errors()[:3]:
        where = ".".join(str(part) for part in item["loc"]) or "document"
        parts.append(f"{where}: got {str(item['input'])[:80]!r}; {item['msg']}")
    return "; ".join(parts)
