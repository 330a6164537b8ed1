"""The flow `nightly`: re-evaluate the champion on fresh seeds and report drift."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import Field

from flows import stages
from flows.artifacts import show_page
from flows.decisions import Ending
from flows.parameters import FlowParameters
from mario.config.levels import TaskName, model_name
from mario.jobs.context import JobContext
from mario.jobs.nightly import NightlyCheck, check_champion, drift_lines


class NightlyParameters(FlowParameters):
    """The champion to re-evaluate."""

    task: TaskName = Field("1-1", description='The task: a level ("1-1") or "all".')
    units: int = Field(100, ge=10, le=10_000, description="Fresh units (level, seed) to play.")
    alpha: float = Field(
        0.001, gt=0, lt=0.5, description="Chance of an alarm on a night on which nothing changed."
    )


def _run_name() -> str:
    return f"nightly {model_name(NightlyParameters.of_this_run().task)} {_night()}"


def _night() -> str:
    """The date that the flow run was scheduled for, the same in each attempt."""
    scheduled = flow_run.scheduled_start_time or datetime.now(UTC)
    return f"{scheduled:%Y-%m-%d}"


def ending_of_drift(drifted: bool, lines: Sequence[str]) -> Ending:
    """How the flow run ends: drift is a failure with a name of its own."""
    message = " ".join(lines)
    return (
        Ending("FAILED", "Drifted", message) if drifted else Ending("COMPLETED", "Steady", message)
    )


@flow(name="nightly", flow_run_name=_run_name, persist_result=False)
def nightly(parameters: NightlyParameters = NightlyParameters()) -> State[Any]:  # noqa: B008
    """Play the champion on fresh seeds, and raise an alarm if it plays unlike its baseline.

    Ends as Steady, Drifted or Failed.
    """
    if (too_often := stages.out_of_attempts()) is not None:
        return too_often
    with JobContext.open() as context:
        night = _night()
        model = model_name(parameters.task)

        def work() -> NightlyCheck:
            return check_champion(
                parameters.task, night, context, units=parameters.units, alpha=parameters.alpha
            )

        check = stages.run_stage("re-evaluate", f"champion of {model}", work)
        lines = drift_lines(check)
        show_page(f"nightly-{model}", f"{model} on {night}", lines)
        if check.drift.drifted:
            stages.emit_model_event(
                stages.DRIFTED_EVENT,
                model,
                check.version,
                {"reasons": list(check.drift.reasons), "evaluation": check.evaluation_id},
            )
        return stages.to_state(ending_of_drift(check.drift.drifted, lines), check.drift.drifted)
