"""Checkpoints: folders that are complete or absent, verified on load, pruned by policy.

A checkpoint is a folder of three files: `state.json` (plain values and the SHA-256 of the other
two), `tensors.pt` (networks and optimizer, read by torch's weights-only loader) and `arrays.npz`
(generators, environments, buffers; read without pickle). It is written into a folder aside, synced,
and renamed; so a kill or a full disk leaves an old checkpoint or none, never half of one.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from mario.errors import CheckpointError
from mario.files import clear_unfinished, remove_folder, whole_folder, write_synced

log = logging.getLogger(__name__)

STATE_FILE, TENSORS_FILE, ARRAYS_FILE = "state.json", "tensors.pt", "arrays.npz"
_FORMAT = 1
_NAME = re.compile(r"^steps-(\d{12})$")
#: Bytes in one write; few enough to stay in the processor's cache.
_PIECE_BYTES = 1 << 20
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class CheckpointContent:
    """What a checkpoint holds.

    Attributes:
        values: JSON types.
        tensors: nested dicts and lists of tensors, numbers and strings.
        arrays: arrays by name, no objects among them.
    """

    values: Mapping[str, Any]
    tensors: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint on the disk.

    Attributes:
        path: its folder.
        total_steps: agent steps of the run when it was taken.
        sha256: digest of its `state.json`, which names the digests of the rest.
        size_bytes: of all its files.
    """

    path: Path
    total_steps: int
    sha256: str
    size_bytes: int


def checkpoint_name(total_steps: int) -> str:
    """Name a checkpoint's folder so that names sort by steps."""
    return f"steps-{total_steps:012d}"


def write_checkpoint(target: Path, total_steps: int, content: CheckpointContent) -> CheckpointInfo:
    """Write a checkpoint so that the folder `target` is complete or absent.

    An existing checkpoint of that name is replaced.

    Raises:
        CheckpointError: the disk is full or cannot be written; nothing is left behind.
    """
    try:
        with whole_folder(target) as aside:
            digests = {
                TENSORS_FILE: _write(aside / TENSORS_FILE, _tensor_bytes(content.tensors)),
                ARRAYS_FILE: _write_arrays(aside / ARRAYS_FILE, content.arrays),
            }
            state = {
                "format": _FORMAT,
                "total_steps": total_steps,
                "files": digests,
                "values": dict(content.values),
            }
            text = json.dumps(state, sort_keys=True, allow_nan=True).encode()
            # The state carries its own digest, so that a flipped bit in it is found as well.
            own = hashlib.sha256(text).hexdigest()
            _write(aside / STATE_FILE, own.encode() + b"\n" + text)
            size = sum(file.stat().st_size for file in aside.iterdir())
    except OSError as error:
        raise CheckpointError(
            f"{target}: checkpoint not written ({error.strerror or error}); expected room and "
            "permission to write; free disk space; the previous checkpoint remains"
        ) from error
    return CheckpointInfo(target, total_steps, own, size)


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> CheckpointContent:
    """Read and verify a checkpoint; nothing pickled is opened.

    Raises:
        CheckpointError: it is missing, incomplete, damaged, or of another format.
    """
    values = verify_checkpoint(path)
    try:
        tensors = torch.load(path / TENSORS_FILE, map_location=device, weights_only=True)
        with np.load(path / ARRAYS_FILE, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened.files}
    except Exception as error:  # torch and numpy each raise their own
        raise CheckpointError(
            f"{path}: cannot be read ({str(error).splitlines()[0][:120]}); expected a checkpoint "
            "of this version; resume from another one"
        ) from None
    return CheckpointContent(values, tensors, arrays)


def verify_checkpoint(path: Path) -> Mapping[str, Any]:
    """Compare a checkpoint's digests, and read its plain values; its tensors stay on the disk.

    Raises:
        CheckpointError: it is missing, incomplete, damaged, or of another format.
    """
    state = _read_state(path)
    for name, expected in state["files"].items():
        got = _digest(path / name)
        if got != expected:
            raise CheckpointError(
                f"{path / name}: got SHA-256 {got[:16]}…, expected {expected[:16]}…; the "
                "checkpoint is damaged, resume from another one"
            )
    values: Mapping[str, Any] = state["values"]
    return values


def read_values(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint's plain values alone.

    Raises:
        CheckpointError: its state file is missing or damaged.
    """
    values: Mapping[str, Any] = _read_state(path)["values"]
    return values


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, the newest first; not yet verified."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.match(path.name)]
    return sorted(found, key=lambda path: path.name, reverse=True)


def load_latest(
    folder: Path,
    device: torch.device | str = "cpu",
    *,
    on_skipped: Callable[[CheckpointError], None] | None = None,
) -> tuple[Path, CheckpointContent] | None:
    """Load the newest checkpoint that is whole; a broken one is skipped with a warning.

    Args:
        folder: where the checkpoints are.
        device: where the tensors go.
        on_skipped: called with the error of each broken one.

    Returns:
        Its folder and content; None where there is no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints and none of them is whole.
    """

    def skipped(error: CheckpointError) -> None:
        log.warning("skipping a broken checkpoint: %s", error)
        if on_skipped is not None:
            on_skipped(error)

    return _newest_whole(folder, lambda path: read_checkpoint(path, device), skipped)


def verify_latest(folder: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """Find the newest checkpoint whose digests are right, and its plain values.

    Raises:
        CheckpointError: there are checkpoints and none of them is whole.
    """
    return _newest_whole(folder, verify_checkpoint, lambda _: None)


def _newest_whole(
    folder: Path, read: Callable[[Path], _Read], skipped: Callable[[CheckpointError], None]
) -> tuple[Path, _Read] | None:
    paths = list_checkpoints(folder)
    for path in paths:
        try:
            return path, read(path)
        except CheckpointError as error:
            skipped(error)
    if paths:
        raise CheckpointError(
            f"{folder}: got {len(paths)} checkpoints, none of them whole; expected one that "
            "verifies; start the run again without resuming"
        )
    return None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints, and what killed writers left unfinished."""
    for path in list_checkpoints(folder)[keep:]:
        discard(path)
    clear_unfinished(folder)


def discard(path: Path) -> None:
    """Delete a checkpoint."""
    remove_folder(path)


def _read_state(path: Path) -> dict[str, Any]:
    digest, _, text = _read(path / STATE_FILE).partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise CheckpointError(
            f"{path / STATE_FILE}: does not have the SHA-256 that it names; the checkpoint is "
            "damaged, resume from another one"
        )
    state: dict[str, Any] = json.loads(text)
    if state.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path}: got checkpoint format {state.get('format')}, expected {_FORMAT}; resume with "
            "the version of this program that wrote it"
        )
    return state


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); expected a file of a checkpoint; resume "
            "from another one"
        ) from None


def _tensor_bytes(tensors: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer)
    return buffer.getvalue()


def _write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Write arrays as `numpy.savez` does, without the copies that it makes of each piece.

    A replay buffer takes most of a gigabyte, and a run that is stopped has little time.
    """
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                if array.dtype.hasobject:
                    raise ValueError(f"got an array {name} of objects; expected one of numbers")
                whole = np.asarray(array, order="C")
                content = whole.reshape(-1).view(np.uint8).data
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    header = np.lib.format.header_data_from_array_1_0(whole)
                    np.lib.format.write_array_header_1_0(member, header)
                    for start in range(0, len(content), _PIECE_BYTES):
                        member.write(content[start : start + _PIECE_BYTES])
        file.flush()
        os.fsync(file.fileno())
    return _digest(path)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); expected a file of a checkpoint; resume "
            "from another one"
        ) from None


def _write(path: Path, data: bytes) -> str:
    write_synced(path, data)
    return hashlib.sha256(data).hexdigest()
