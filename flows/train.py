"""The flow `train`: train a policy and register it, without judging it."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows import stages
from flows.decisions import Ending
from flows.parameters import TrainParameters, experiment_run_name
from mario.config.levels import model_name
from mario.jobs.context import JobContext


@flow(name="train", flow_run_name=experiment_run_name, persist_result=False)
def train(parameters: TrainParameters = TrainParameters()) -> State[Any]:  # noqa: B008
    """Train a policy and register it, without judging it.

    Ends as Registered, Collapsed, Interrupted or Failed.
    """
    if (too_often := stages.out_of_attempts()) is not None:
        return too_often
    with JobContext.open() as context:
        config, run_id = stages.begin(parameters, context)
        trained = stages.train(config, run_id, context)
        if (ended := stages.state_after_training(trained)) is not None:
            return ended
        version = stages.register(trained.run_id, context)
        message = f"run {trained.run_id} is {model_name(config.task)} version {version}"
        return stages.to_state(Ending("COMPLETED", "Registered", message), version)
