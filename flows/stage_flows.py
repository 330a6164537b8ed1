"""Single arrows as Prefect flows: train, evaluate, promote, nightly."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.runtime import flow_run

from flows import stages
from flows.artifacts import file_link, safely, show_page
from flows.decisions import (
    Ending,
    ending_of_drift,
    ending_of_verdict,
)
from flows.parameters import (
    EvaluateParameters,
    NightlyParameters,
    PromoteParameters,
    TrainParameters,
)
from mario.config.experiment import load_config
from mario.config.levels import task_levels
from mario.jobs.context import Runtime
from mario.jobs.evaluate import evaluate_stored, evaluation_key, summary_line, units_of
from mario.jobs.nightly import NightlyCheck, check_champion, drift_lines
from mario.jobs.policies import load_policy
from mario.jobs.report import report_verdict
from mario.jobs.versions import fetch_version
from mario.registry.registry import model_name
from mario.store.store import ExperimentStore


def _parameters() -> dict[str, Any]:
    return dict(flow_run.parameters.get("parameters") or {})


def _train_name() -> str:
    return f"train {Path(_parameters().get('config', 'demo')).stem}"


def _evaluate_name() -> str:
    values = _parameters()
    return f"evaluate {model_name(values.get('task', '1-1'))} {values.get('policy', 'champion')}"


def _promote_name() -> str:
    values = _parameters()
    config = Path(values.get("config", "demo")).stem
    return f"promote {values.get('policy', 'challenger')} of {config}"


def _nightly_name() -> str:
    return f"nightly {model_name(_parameters().get('task', '1-1'))} {_night()}"


def _night() -> str:
    """The night's name: the date that it was scheduled for, the same in each attempt."""
    scheduled = flow_run.scheduled_start_time or datetime.now(UTC)
    return f"{scheduled:%Y-%m-%d}"


@flow(name="train", flow_run_name=_train_name, persist_result=False)
def train(parameters: TrainParameters = TrainParameters()) -> State[Any]:  # noqa: B008
    """Train a policy and register it, without judging it.

    Ends as Registered, Collapsed, Interrupted or Failed.
    """
    if (too_often := stages.exhausted()) is not None:
        return too_often
    runtime = Runtime.from_environment()
    config, run_id = stages.begin(parameters, runtime)
    trained = stages.train(config, run_id, runtime)
    if (ended := stages.end_of_training(trained)) is not None:
        return ended
    version = stages.register(trained.run_id, runtime)
    message = f"run {trained.run_id} is {model_name(config.task)} version {version}"
    return stages.to_state(Ending("COMPLETED", "Registered", message), version)


@flow(name="evaluate", flow_run_name=_evaluate_name, persist_result=False)
def evaluate(parameters: EvaluateParameters = EvaluateParameters()) -> State[Any]:  # noqa: B008
    """Play a version under mario-eval-v1 and store every episode."""
    if (too_often := stages.exhausted()) is not None:
        return too_often
    runtime = Runtime.from_environment()

    def work() -> str:
        loaded = load_policy(parameters.policy, parameters.task, runtime)
        levels = task_levels(parameters.task)
        with ExperimentStore.open(runtime.database_url) as store:
            outcome = evaluate_stored(
                loaded,
                units_of(levels, parameters.family, "", max(parameters.units, len(levels))),
                evaluation_key(loaded, parameters.family, "", levels),
                store,
            )
        return summary_line(loaded, outcome.records)

    line = stages.run_stage("evaluate", f"{parameters.policy} on {parameters.task}", work)
    show_page(f"evaluation-{parameters.task}", f"Evaluation on {parameters.task}", [line])
    return stages.to_state(Ending("COMPLETED", "Completed", line), line)


@flow(name="promote", flow_run_name=_promote_name, persist_result=False)
def promote(parameters: PromoteParameters = PromoteParameters()) -> State[Any]:  # noqa: B008
    """Judge a registered version against the champion; promote it where the gate says so."""
    if (too_often := stages.exhausted()) is not None:
        return too_often
    runtime = Runtime.from_environment()
    config = load_config(parameters.config, parameters.overrides)
    stages.prepare(config, runtime)
    version = stages.run_stage(
        "fetch",
        f"{model_name(config.task)} {parameters.policy}",
        lambda: fetch_version(parameters.policy, config.task, runtime).version,
    )
    judged, _ = stages.judge_and_promote(config, version, runtime)
    links = {}
    if (verdict_id := judged.verdict_id) is not None:
        report = safely("the report", lambda: report_verdict(verdict_id, runtime))
        links = {} if report is None else {"report": file_link(report, runtime)}
    stages.show_judgement(config, judged, runtime, links)
    return stages.to_state(
        ending_of_verdict(judged.decision, version, judged.lines), judged.decision
    )


@flow(name="nightly", flow_run_name=_nightly_name, persist_result=False)
def nightly(parameters: NightlyParameters = NightlyParameters()) -> State[Any]:  # noqa: B008
    """Play the champion on fresh seeds; raise an alarm where it plays unlike when promoted.

    Ends as Steady or Drifted.
    """
    if (too_often := stages.exhausted()) is not None:
        return too_often
    runtime = Runtime.from_environment()
    night = _night()
    model = model_name(parameters.task)

    def work() -> NightlyCheck:
        return check_champion(
            parameters.task, night, runtime, units=parameters.units, alpha=parameters.alpha
        )

    check = stages.run_stage("re-evaluate", f"champion of {model}", work)
    lines = drift_lines(check)
    show_page(f"nightly-{model}", f"{model} on {night}", lines)
    if check.drift.drifted:
        emit_event(
            event=stages.DRIFTED_EVENT,
            resource={
                "prefect.resource.id": f"mario.model.{model}",
                "prefect.resource.name": model,
                "mario.task": parameters.task,
                "mario.version": str(check.version),
            },
            payload={"reasons": list(check.drift.reasons), "evaluation": check.evaluation_id},
        )
    return stages.to_state(ending_of_drift(check.drift.drifted, lines), check.drift.drifted)
