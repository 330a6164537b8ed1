"""Download a version to a temporary folder, verify its digest, then move it into place."""

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
    """A version that can be downloaded.

    Attributes:
        model: ``mario-<task>``.
        version: its number.
        digest: SHA-256 of its ``policy.json``; the download is checked against it.
        source: the artefact's address in MLflow.
        run_id: the training run that it comes from, if known.
        promotion: the ledger row that made it champion, if it was resolved as champion.
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
    """Download a version into a folder.

    Args:
        tracking_uri: the registry's address.
        version: the version, with its digest.
        target: the folder; content with the same digest is kept, other content is replaced.
        with_archive: also fetch the archive that resumes training.

    Raises:
        ArtefactError: if the artefact is missing, incomplete, or has another digest.
    """
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
        return  # load_artefact reports what is wrong with it
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
    """Load the artefact in a folder; None if it is invalid or has another digest."""
    try:
        artefact = load_artefact(folder)
    except ArtefactError:
        return None
    return artefact if artefact.digest == digest else None


def _put_in_place(aside: Path, target: Path, digest: str) -> None:
    """Rename a verified folder to its place, unless another process has done so meanwhile."""
    for _ in range(3):
        try:
            aside.replace(target)
            return
        except OSError:  # the folder exists already
            if _present(target, digest) is not None:
                return
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
        with suppress(FileNotFoundError):
            target.replace(old)
        shutil.rmtree(old, ignore_errors=True)
    raise ArtefactError(
        f"{target}: other processes keep writing another version there; expected one version per "
        "folder; download each version into a folder of its own"
    )
