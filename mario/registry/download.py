"""Downloading a version: fetched aside, verified against the store's digest, put in place whole."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mario.errors import ArtefactError
from mario.policy.artefact import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    ONNX_FILE,
    Artefact,
    load_artefact,
)
from mario.policy.manifest import PolicyManifest
from mario.store.records import Promotion


@dataclass(frozen=True, kw_only=True)
class ResolvedVersion:
    """A version that may be loaded.

    Attributes:
        model: ``mario-<task>``.
        version: its number.
        digest: SHA-256 of its ``policy.json``, which the download must have.
        source: where MLflow keeps the artefact.
        run_id: the training run it comes from, if known.
        promotion: the ledger row that made it champion, when it was resolved as champion.
    """

    model: str
    version: int
    digest: str
    source: str
    run_id: str | None
    promotion: Promotion | None = None


def download_version(
    tracking_uri: str, version: ResolvedVersion, target: Path, with_archive: bool
) -> Artefact:
    """Download a version into a folder; see ``ModelRegistry.download``."""
    present = _present(target, version.digest)
    if present is not None:
        return present
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        _fetch(tracking_uri, version, aside, with_archive)
        artefact = load_artefact(aside)
        if artefact.digest != version.digest:
            raise ArtefactError(
                f"{version.model} v{version.version} came with digest {artefact.digest[:12]}; "
                f"expected {version.digest[:12]} as registered; the artefact was changed: "
                "roll back with `mario registry rollback`, then register it again"
            )
        aside.chmod(0o755)
        _put_in_place(aside, target, version.digest)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return replace(artefact, folder=target)


def _fetch(tracking_uri: str, version: ResolvedVersion, folder: Path, with_archive: bool) -> None:
    _fetch_file(tracking_uri, version, MANIFEST_FILE, folder)
    _fetch_file(tracking_uri, version, ONNX_FILE, folder)
    try:
        manifest = PolicyManifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    except ValueError:
        return  # load_artefact says what is wrong with it
    if manifest.golden_sha256 is not None:
        _fetch_file(tracking_uri, version, GOLDEN_FILE, folder)
    if with_archive:
        _fetch_file(tracking_uri, version, MODEL_FILE, folder)


def _fetch_file(tracking_uri: str, version: ResolvedVersion, name: str, folder: Path) -> None:
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    try:
        mlflow.artifacts.download_artifacts(
            artifact_uri=f"{version.source.rstrip('/')}/{name}",
            dst_path=str(folder),
            tracking_uri=tracking_uri,
        )
    except (MlflowException, OSError) as error:
        raise ArtefactError(
            f"{name} of {version.model} v{version.version} cannot be downloaded from "
            f"{version.source} ({str(error).splitlines()[0][:200]}); expected it there; "
            "choose another version, or register it again"
        ) from error


def _present(folder: Path, digest: str) -> Artefact | None:
    """The artefact in a folder if it is whole and the one that is wanted."""
    try:
        artefact = load_artefact(folder)
    except ArtefactError:
        return None
    return artefact if artefact.digest == digest else None


def _put_in_place(aside: Path, target: Path, digest: str) -> None:
    """Rename a verified folder to its place, unless another process did so meanwhile."""
    for _ in range(3):
        try:
            aside.replace(target)
            return
        except OSError:  # there is a folder already
            if _present(target, digest) is not None:
                return
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
        with suppress(FileNotFoundError):
            target.replace(old)
        shutil.rmtree(old, ignore_errors=True)
    raise ArtefactError(
        f"{target}: got a folder that keeps coming back with another content; expected to be the "
        "only version there; download each version into a folder of its own"
    )
