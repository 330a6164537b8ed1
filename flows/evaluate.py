"""The flow `evaluate`: play a registered version under mario-eval-v1."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from flows import stages
from flows.artifacts import show_page
from flows.decisions import Ending
from flows.parameters import FlowParameters, PolicyName
from mario.config.levels import TaskName, model_name, task_levels
from mario.evaluation.seeds import SeedFamily
from mario.jobs.context import JobContext
from mario.jobs.engines.contract import EvaluationEngine
from mario.jobs.engines.local import LOCAL
from mario.jobs.evaluate import evaluate_family, summary_line
from mario.jobs.policies import load_policy


class EvaluateParameters(FlowParameters):
    """A version to play under mario-eval-v1."""

    task: TaskName = Field("1-1", description='The task: a level ("1-1") or "all".')
    policy: PolicyName = Field("champion", description="champion, challenger or a version number.")
    units: int = Field(60, ge=1, le=10_000, description="Units (level, seed) to play.")
    family: Literal["selection", "screening"] = Field(
        "screening", description="Seeds: selection or screening; confirmation is the gate's."
    )


def _run_name() -> str:
    given = EvaluateParameters.of_this_run()
    return f"evaluate {model_name(given.task)} {given.policy}"


@flow(name="evaluate", flow_run_name=_run_name, persist_result=False)
def evaluate(parameters: EvaluateParameters = EvaluateParameters()) -> State[Any]:  # noqa: B008
    """Play a version under mario-eval-v1 and store every episode."""
    if (too_often := stages.out_of_attempts()) is not None:
        return too_often
    subject = f"{parameters.policy} on {parameters.task}"
    line = stages.run_stage("evaluate", subject, lambda: play(parameters))
    return show_result(parameters, line)


def play(parameters: EvaluateParameters, engine: EvaluationEngine = LOCAL) -> str:
    """Play the units and store every episode; returns the result in one line."""
    levels = task_levels(parameters.task)
    count = max(parameters.units, len(levels))
    with JobContext.open() as context:
        loaded = load_policy(parameters.policy, parameters.task, context)
        family = SeedFamily(parameters.family)
        outcome = evaluate_family(loaded, levels, family, count, context.store, engine=engine)
        return summary_line(loaded, outcome.records)


def show_result(parameters: EvaluateParameters, line: str) -> State[Any]:
    """Show the result of an evaluation in Prefect's page; returns the final state."""
    show_page(f"evaluation-{parameters.task}", f"Evaluation on {parameters.task}", [line])
    return stages.to_state(Ending("COMPLETED", "Completed", line), line)
