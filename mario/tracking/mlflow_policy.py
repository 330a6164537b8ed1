"""A run's policy as an MLflow model: what came out of a run, whether or not it is ever registered.

MLflow's lineage is run -> outputs -> logged model; the model's page names the run, and the run's
the model (https://mlflow.org/docs/latest/ml/mlflow-3/). Every step looks first whether an earlier
delivery took it, since a delivery may repeat.
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
    """Log an artefact as the model that an MLflow run put out; again changes nothing.

    Args:
        client: of the tracking server.
        mlflow_run_id: the run.
        folder: the artefact.
        digest: what the artefact must have: the folder may hold another by now.

    Returns:
        The logged model's id; ``models:/<id>`` loads it.

    Raises:
        ArtefactError: the folder is gone, damaged, or holds another policy.
        RegistryError: MLflow's full package is not installed.
        MlflowException: MLflow does not answer or refuses.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    artefact = load_artefact(folder)
    if artefact.digest != digest:
        raise ArtefactError(
            f"{folder}: got the policy {artefact.digest[:12]}, expected {digest[:12]}, which the "
            "run ended with; it was exported anew since, and that one is logged in its turn"
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
    """The model that an earlier delivery made, whole or not."""
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
    """By the store's id: letters, digits and dashes, all of which MLflow allows in a name."""
    return f"policy-{run.data.tags.get(TAG_RUN, run.info.run_id)}"
