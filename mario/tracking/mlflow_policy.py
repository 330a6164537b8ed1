"""Log the policy of a run as an MLflow model, whether or not it is registered later.

MLflow's lineage is run -> outputs -> logged model: the page of the model names the run, and the
page of the run names the model (https://mlflow.org/docs/latest/ml/mlflow-3/). A delivery may be
repeated, so every step first checks whether it was done before.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mario.errors import ArtefactError
from mario.policy.artefact import Artefact, load_artefact
from mario.tracking.mlflow_client import TAG_DIGEST, TAG_ONNX, TAG_RUN, write_model_folder

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.tracking import MlflowClient

_MODEL_TYPE = "policy"


def log_policy(client: MlflowClient, mlflow_run_id: str, folder: Path, digest: str) -> str:
    """Log an artefact as the output of an MLflow run; a repetition changes nothing.

    Args:
        client: the client of the tracking server.
        mlflow_run_id: the run.
        folder: the artefact.
        digest: the digest that it must have: the folder may hold another artefact by now.

    Returns:
        The id of the logged model; ``models:/<id>`` loads it.

    Raises:
        ArtefactError: the folder is missing, damaged, or holds another policy.
        RegistryError: MLflow's full package is not installed.
        MlflowException: MLflow is unreachable or refuses.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    artefact = load_artefact(folder)
    if artefact.digest != digest:
        raise ArtefactError(
            f"{folder}: got the policy {artefact.digest[:12]}, expected {digest[:12]}, which the "
            "run ended with; another one was exported since, and is logged by its own record"
        )
    run = client.get_run(mlflow_run_id)
    model = _find(client, run, digest) or _create(client, run, artefact)
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory(prefix="mario-policy-") as temporary:
            # Without the archive: it is large, holds a pickle, and registering uploads it.
            prepared = write_model_folder(artefact, Path(temporary) / "model", with_archive=False)
            client.log_model_artifacts(model.model_id, str(prepared))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    known = run.outputs.model_outputs if run.outputs else []
    if all(output.model_id != model.model_id for output in known):
        steps = artefact.manifest.training_steps or 0
        client.log_outputs(mlflow_run_id, [LoggedModelOutput(model.model_id, steps)])
    return str(model.model_id)


def _find(client: MlflowClient, run: Run, digest: str) -> LoggedModel | None:
    """Find the model that an earlier delivery created, complete or not."""
    models = client.search_logged_models(
        [run.info.experiment_id], filter_string=f"name = '{_name(run)}'"
    )
    for model in models:
        if model.source_run_id == run.info.run_id and model.tags.get(TAG_DIGEST) == digest:
            found: LoggedModel = model
            return found
    return None


def _create(client: MlflowClient, run: Run, artefact: Artefact) -> LoggedModel:
    manifest = artefact.manifest
    return client.create_logged_model(
        run.info.experiment_id,
        name=_name(run),
        source_run_id=run.info.run_id,
        model_type=_MODEL_TYPE,
        tags={
            TAG_DIGEST: artefact.digest,
            TAG_ONNX: manifest.onnx_sha256,
            TAG_RUN: run.data.tags.get(TAG_RUN, ""),
            "mario.config_hash": manifest.training_config_hash,
            "mario.git_commit": manifest.git_commit,
            "mario.training_steps": str(manifest.training_steps or 0),
        },
    )


def _name(run: Run) -> str:
    """Name the model after the run's id in the store, which has only characters MLflow allows."""
    return f"policy-{run.data.tags.get(TAG_RUN, run.info.run_id)}"
