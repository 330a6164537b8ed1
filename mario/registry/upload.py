"""Upload a version: the artefact first, the MLflow version last, so that a version is complete."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mario.config.levels import task_of_model
from mario.policy.artefact import Artefact
from mario.store.records import RegisteredVersion
from mario.store.vocabulary import VersionState
from mario.tracking.mlflow_client import (
    TAG_DIGEST,
    TAG_ONNX,
    TAG_REGISTRATION,
    TAG_RUN,
    TAG_STATE,
    ensure_experiment,
    write_model_folder,
)

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient


def upload_version(
    client: MlflowClient,
    row: RegisteredVersion,
    artefact: Artefact,
    *,
    mlflow_run_id: str | None,
    tags: Mapping[str, str],
    artifact_dir: Path | None,
) -> ModelVersion:
    """Upload an artefact under an MLflow run and create the model version that refers to it.

    The artefact's path contains the registration's id, so a repeated upload overwrites an
    interrupted one.

    Args:
        client: the registry's client.
        row: the pending registration.
        artefact: a verified artefact whose folder still exists.
        mlflow_run_id: the tracking run that it belongs to; None creates one.
        tags: additional tags of the version, beside digest and lineage.
        artifact_dir: folder of an embedded registry's artefacts.

    Raises:
        MlflowException: if MLflow does not answer or refuses.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(row.model, tags={"mario.system": "mario-mlops"})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    own_run = mlflow_run_id is None
    if mlflow_run_id is None:
        run = client.create_run(
            ensure_experiment(client, row.model, artifact_dir),
            run_name=f"register {row.id}",
            tags={TAG_REGISTRATION: row.id},
        )
        mlflow_run_id = str(run.info.run_id)
    path = f"policies/{row.id}"
    with tempfile.TemporaryDirectory(prefix="mario-register-") as temporary:
        prepared = write_model_folder(artefact, Path(temporary) / "model")
        client.log_artifacts(mlflow_run_id, str(prepared), path)
    version = client.create_model_version(
        row.model,
        f"{client.get_run(mlflow_run_id).info.artifact_uri}/{path}",
        run_id=mlflow_run_id,
        tags={**_lineage(row, artefact), **tags},
        description=f"policy {artefact.digest[:12]}",
    )
    if own_run:
        client.set_terminated(mlflow_run_id)
    return version


def _lineage(row: RegisteredVersion, artefact: Artefact) -> dict[str, str]:
    manifest = artefact.manifest
    return {
        TAG_DIGEST: artefact.digest,
        TAG_ONNX: manifest.onnx_sha256,
        TAG_REGISTRATION: row.id,
        TAG_STATE: VersionState.PENDING,
        "mario.task": manifest.task or task_of_model(row.model),
        "mario.config_hash": manifest.training_config_hash,
        "mario.git_commit": manifest.git_commit,
        "mario.frame_skip": str(manifest.frame_skip),
        **({TAG_RUN: row.run_id} if row.run_id else {}),
    }
