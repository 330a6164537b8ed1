"""A sweep in MLflow: one parent run, with the run of each trial as its child."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mario.config.levels import model_name
from mario.config.run_states import RunStatus
from mario.errors import RegistryError
from mario.store.records import Run
from mario.store.runs import flatten
from mario.tracking.mlflow_client import (
    TAG_RUN,
    TAG_STATUS,
    MlflowTracking,
)

TAG_SWEEP, TAG_TRIAL, TAG_TRIAL_STATE = "mario.sweep", "mario.trial", "mario.trial_state"
#: What one `log_batch` may hold: https://mlflow.org/docs/latest/rest-api.html#log-batch
_PARAMETERS_A_BATCH, _PARAMETER_CHARACTERS = 90, 6_000


def begin_sweep_run(tracking: MlflowTracking, run: Run, definition: Mapping[str, Any]) -> str:
    """Create the parent run, or find the one that a killed worker created.

    Args:
        tracking: the MLflow server.
        run: the sweep's own run in the store.
        definition: the sweep's definition, logged as parameters.

    Returns:
        The MLflow run's id.

    Raises:
        RegistryError: MLflow is unreachable.
    """
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    try:
        client = tracking.client
        experiment = tracking.experiment(model_name(run.task))
        found = client.search_runs([experiment], f"tags.`{TAG_RUN}` = '{run.id}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        tags = {TAG_RUN: run.id, TAG_SWEEP: run.name, TAG_STATUS: RunStatus.RUNNING}
        made = client.create_run(experiment, run_name=f"sweep {run.name}", tags=tags)
        parameters = [
            Param(name, value[:_PARAMETER_CHARACTERS])
            for name, value in flatten(definition).items()
        ]
        for start in range(0, len(parameters), _PARAMETERS_A_BATCH):
            client.log_batch(
                made.info.run_id, params=parameters[start : start + _PARAMETERS_A_BATCH]
            )
    except MlflowException as error:
        raise _unreachable(tracking, error) from error
    return str(made.info.run_id)


def describe_trial(
    tracking: MlflowTracking,
    mlflow_run_id: str | None,
    sweep: str,
    number: int,
    state: str,
    score: float,
) -> None:
    """Tag the run of a trial with the trial's end and score.

    Raises:
        RegistryError: MLflow is unreachable, or has no run of the trial yet.
    """
    from mlflow.exceptions import MlflowException

    if mlflow_run_id is None:
        raise RegistryError(
            f"trial {number} of {sweep} has no run at {tracking.uri} yet; expected MLflow "
            "to answer while it was trained; its journal is delivered at the next start"
        )
    client = tracking.client
    tags = {TAG_SWEEP: sweep, TAG_TRIAL: str(number), TAG_TRIAL_STATE: state}
    try:
        for name, value in tags.items():
            client.set_tag(mlflow_run_id, name, value)
        client.log_metric(mlflow_run_id, "sweep/score", score)
    except MlflowException as error:
        raise _unreachable(tracking, error) from error


def end_sweep_run(
    tracking: MlflowTracking, mlflow_run_id: str, trials: int, best: float | None
) -> None:
    """Finish the parent run.

    Raises:
        RegistryError: MLflow is unreachable.
    """
    from mlflow.exceptions import MlflowException

    client = tracking.client
    try:
        client.log_metric(mlflow_run_id, "sweep/trials", trials)
        if best is not None:
            client.log_metric(mlflow_run_id, "sweep/best_score", best)
        client.set_tag(mlflow_run_id, TAG_STATUS, RunStatus.FINISHED)
        client.set_terminated(mlflow_run_id)
    except MlflowException as error:
        raise _unreachable(tracking, error) from error


def _unreachable(tracking: MlflowTracking, error: Exception) -> RegistryError:
    return RegistryError(
        f"MLflow at {tracking.uri} does not answer ({str(error).splitlines()[0][:200]}); "
        "expected it to; start it, name another with MLFLOW_TRACKING_URI, or leave it out with "
        "sinks.mlflow: false"
    )
