"""The MLflow client: connections, experiments, and the model folder that MLflow can serve.

An embedded MLflow is a SQLite file. Its tables are created in another file that is renamed into
place, because MLflow creates them in dozens of transactions: a process killed between two of them
would leave a file that no MLflow opens again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from mario.errors import RegistryError
from mario.policy.artefact import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, ONNX_FILE, Artefact

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"
CHALLENGER = "challenger"
TAG_DIGEST = "mario.digest"
TAG_ONNX = "mario.onnx_sha256"
TAG_REGISTRATION = "mario.registration_id"
TAG_STATE = "mario.state"
TAG_RUN = "mario.run_id"
TAG_STATUS = "mario.status"
TAG_POLICY = "mario.policy"

# By default MLflow retries an unreachable server for minutes; a job reports it within seconds.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# What `mlflow models serve` needs, without the packages that train.
_SERVING_PACKAGES = ("mlflow", "numpy", "onnx", "onnxruntime")


def quiet_mlflow() -> None:
    """Set the variables that the user has not set: no telemetry, short waits, no banners."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)


@cache
def tracking_client(tracking_uri: str) -> MlflowClient:
    """The MLflow client of an address, one for each address in a process.

    Raises:
        RegistryError: the address is invalid, or MLflow is unreachable.
    """
    embedded_path(tracking_uri)
    prepare_tracking(tracking_uri)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    except MlflowException as error:
        raise RegistryError(
            f"cannot open MLflow at {tracking_uri} ({str(error).splitlines()[0][:200]}); expected "
            "one that answers; start it, or name another with MLFLOW_TRACKING_URI"
        ) from error


def is_unreachable(error: MlflowException) -> bool:
    """Whether MLflow did not answer, so that the same call may succeed later.

    A refusal by the server is a RestException with a code; a call that was not answered raises the
    plain exception with the code INTERNAL_ERROR (mlflow/utils/rest_utils.py).
    """
    from mlflow.exceptions import MlflowException

    if error.error_code == "TEMPORARILY_UNAVAILABLE":  # also: its database is unreachable
        return True
    return type(error) is MlflowException and error.error_code == "INTERNAL_ERROR"


def embedded_path(tracking_uri: str) -> Path | None:
    """The SQLite file of an embedded MLflow; None for a server.

    Raises:
        RegistryError: the address is neither.
    """
    parsed = urlparse(tracking_uri)
    if parsed.scheme == "sqlite" and parsed.path.lstrip("/"):
        return Path(unquote(parsed.path[1:]))
    if parsed.scheme in ("http", "https") and parsed.netloc:
        return None
    if parsed.scheme.startswith("postgresql"):
        return None
    raise RegistryError(
        f"got the MLflow address {tracking_uri!r}; expected sqlite:///runs/mlflow.db or "
        "http://HOST:PORT; check MLFLOW_TRACKING_URI"
    )


def prepare_tracking(tracking_uri: str, artifact_dir: Path | None = None) -> None:
    """Create the files of an embedded MLflow where they are missing.

    Args:
        tracking_uri: its address; nothing is done for a server.
        artifact_dir: folder to create for the artefacts.

    Raises:
        RegistryError: the file or folder cannot be created.
    """
    quiet_mlflow()
    path = embedded_path(tracking_uri)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if artifact_dir is not None:
            artifact_dir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return
        with (path.parent / f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of two first runs at once, the second finds the file
            if not path.exists():
                _create_database(path)
    except OSError as error:
        raise RegistryError(
            f"cannot make MLflow's file {path} ({error.strerror}); expected a folder that can be "
            "written; name another with MLFLOW_TRACKING_URI or MARIO_RUNS_DIR"
        ) from error


@dataclass(frozen=True)
class MlflowTracking:
    """One MLflow tracking server.

    Attributes:
        uri: ``sqlite:///runs/mlflow.db`` or ``http://mlflow:5000``.
        artifact_dir: folder of an embedded MLflow's artefacts; a server chooses its own.
    """

    uri: str
    artifact_dir: Path | None = None

    @property
    def client(self) -> MlflowClient:
        """The client of this address; the files of an embedded MLflow are made where missing.

        Raises:
            RegistryError: the address is none, or MLflow does not answer.
        """
        prepare_tracking(self.uri, self.artifact_dir)
        return tracking_client(self.uri)

    def experiment(self, name: str) -> str:
        """Find or create an experiment; returns its id."""
        return ensure_experiment(self.client, name, self.artifact_dir)


def _create_database(path: Path) -> None:
    import sqlalchemy as sa
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy.pool import NullPool

    for stale in path.parent.glob(f".{path.name}.*.new*"):
        stale.unlink(missing_ok=True)  # we hold the lock, so its process was killed
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", suffix=".new", delete=False
    ) as file:
        aside = Path(file.name)
    engine = sa.create_engine(f"sqlite:///{aside}", poolclass=NullPool)
    _initialize_tables(engine)  # type: ignore[no-untyped-call]
    engine.dispose()
    aside.chmod(0o644)
    aside.replace(path)


def ensure_experiment(client: MlflowClient, name: str, artifact_dir: Path | None) -> str:
    """Find or create an experiment; an embedded one keeps its artefacts under `artifact_dir`.

    Returns:
        The experiment's id.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
    location = None
    if artifact_dir is not None and embedded_path(client.tracking_uri) is not None:
        location = (artifact_dir.resolve() / name).as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException as error:
        found = client.get_experiment_by_name(name)
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
            raise
        return str(found.experiment_id)


def write_model_folder(artefact: Artefact, folder: Path, *, with_archive: bool = True) -> Path:
    """Write an artefact as an MLflow model: its files, with MLflow's descriptions beside them.

    The ONNX file keeps its name and so its digest; the flavours ``onnx`` and ``python_function``
    refer to it, so that `mlflow models serve` works.

    Args:
        artefact: a verified artefact; its folder must still exist.
        folder: the folder to create.
        with_archive: include the archive for further training, if the artefact has one.

    Returns:
        The folder.

    Raises:
        RegistryError: MLflow's full package is not installed (serving images lack it).
    """
    try:
        import numpy as np
        import onnx
        from mlflow import pyfunc
        from mlflow.models import Model
        from mlflow.models.signature import ModelSignature
        from mlflow.types.schema import Schema, TensorSpec
    except ImportError as error:
        raise RegistryError(
            f"registering needs the package {error.name}, which is not installed; expected an "
            "installation that can train: pip install 'mario-mlops[train]'"
        ) from error
    folder.mkdir(parents=True)
    (folder / ONNX_FILE).write_bytes(artefact.onnx)
    for name in (MANIFEST_FILE, GOLDEN_FILE, *((MODEL_FILE,) if with_archive else ())):
        source = artefact.folder / name
        if source.is_file():
            (folder / name).write_bytes(source.read_bytes())
    actions, seen = len(artefact.manifest.actions), artefact.manifest.observation
    model = Model(
        signature=ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(seen.dtype), (-1, *seen.shape), "observation")]),
            outputs=Schema(
                [
                    TensorSpec(np.dtype(np.float32), (-1, actions), "logits"),
                    TensorSpec(np.dtype(np.float32), (-1,), "value"),
                ]
            ),
        ),
        metadata={
            "digest": artefact.digest,
            "actions": list(artefact.manifest.action_names),
            "frame_skip": artefact.manifest.frame_skip,
        },
    )
    pyfunc.add_to_model(
        model,
        loader_module="mlflow.onnx",
        data=ONNX_FILE,
        conda_env="conda.yaml",
        python_env="python_env.yaml",
    )
    model.add_flavor(
        "onnx",
        onnx_version=onnx.__version__,
        data=ONNX_FILE,
        providers=["CPUExecutionProvider"],
    )
    model.save(str(folder / "MLmodel"))
    _write_requirements(folder)
    return folder


def _write_requirements(folder: Path) -> None:
    import platform
    from importlib.metadata import version

    import yaml

    requirements = [f"{name}=={version(name)}" for name in _SERVING_PACKAGES]
    python = platform.python_version()
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
    environment: dict[str, Any] = {
        "python": python,
        "build_dependencies": ["pip"],
        "dependencies": ["-r requirements.txt"],
    }
    (folder / "python_env.yaml").write_text(yaml.safe_dump(environment), encoding="utf-8")
    conda: dict[str, Any] = {
        "name": "mario-policy",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": requirements}],
    }
    (folder / "conda.yaml").write_text(yaml.safe_dump(conda), encoding="utf-8")
