"""Run the stages of flows as Prefect tasks, with their states, retries and events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from prefect import get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.events import emit_event
from prefect.runtime import flow_run

from flows import newer_attempt
from flows.artifacts import (
    TrainingProgress,
    file_link,
    mlflow_link,
    safely,
    show_page,
    show_training,
    show_verdict,
)
from flows.container_limits import this_machine
from flows.decisions import (
    MAX_JUDGEMENTS,
    RETRY_DELAYS_SECONDS,
    Ending,
    ending_of_attempts,
    ending_of_stop,
    ending_of_training,
    promoted_by_earlier_attempt,
    run_id_for,
    why_slow,
    why_unsuitable,
    worth_retrying,
)
from flows.parameters import TrainParameters
from flows.training_display import training_display
from mario.config.experiment import ExperimentConfig, load_config
from mario.config.levels import model_name, task_of_model
from mario.config.run_states import RunStatus
from mario.errors import ConfigError, PromotionConflict, TrainingInterrupted
from mario.evaluation.decision import GateDecision
from mario.jobs import pipeline as jobs
from mario.jobs.attempts import Trained, experiment_of_attempt, train_attempt
from mario.jobs.context import JobContext
from mario.jobs.promote import promote_verdict
from mario.jobs.stop_signals import stopping_on_signals
from mario.store.records import Promotion

Result = TypeVar("Result")
Event = TypeVar("Event")

PROMOTED_EVENT = "mario.champion.promoted"
DRIFTED_EVENT = "mario.champion.drifted"


def say(text: str) -> None:
    """Print a line; under a deployment, write it to the flow run's log."""
    if newer_attempt.is_deployed():
        get_run_logger().info(text)
    else:
        print(text)


def run_stage(name: str, subject: str, work: Callable[[], Result]) -> Result:
    """Run a stage as a task.

    Under a deployment, a stage that fails because a server is unreachable is retried; a command's
    fails at once. If a newer attempt of the flow run has begun meanwhile, the process ends here.

    Args:
        name: the task's name.
        subject: what this stage works on; ends the task run's name.
        work: the stage.
    """
    retries = len(RETRY_DELAYS_SECONDS) if newer_attempt.is_deployed() else 0
    stage = task(
        name=name,
        task_run_name=f"{name} {subject}",
        retries=retries,
        retry_delay_seconds=list(RETRY_DELAYS_SECONDS) if retries else None,
        retry_condition_fn=_retry_condition if retries else None,
        persist_result=False,
    )(work)
    try:
        return stage()
    finally:
        newer_attempt.stop_if_superseded()


def run_retried(work: Callable[[], Result]) -> Result:
    """Run work that cannot be a task, such as a flow, with the retries of `run_stage`."""
    for delay in (*RETRY_DELAYS_SECONDS, None) if newer_attempt.is_deployed() else (None,):
        try:
            return work()
        except Exception as error:
            if delay is None or not worth_retrying(error):
                raise
            say(f"retrying in {delay} s: {error}")
            time.sleep(delay)
        finally:
            newer_attempt.stop_if_superseded()
    raise AssertionError("the loop returns or raises")


def _retry_condition(_task: Any, _task_run: Any, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and worth_retrying(error)


def to_state(ending: Ending, data: Any = None) -> State[Any]:
    """Convert an ending to Prefect's state."""
    return State(type=StateType(ending.type), name=ending.name, message=ending.message, data=data)


def out_of_attempts() -> State[Any] | None:
    """The final state of a flow run that has crashed too often; None while it may continue."""
    ending = ending_of_attempts(flow_run.run_count or 1)
    return None if ending is None else to_state(ending)


def is_cancelled() -> bool:
    """Whether a person asked the server to cancel this flow run."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run.id).state
    return state is not None and (state.is_cancelling() or state.is_cancelled())


def state_after_stop(ending: Ending) -> State[Any]:
    """The final state of a flow run that was stopped from outside."""
    return to_state(
        ending_of_stop(ending, deployed=newer_attempt.is_deployed(), cancelling=is_cancelled())
    )


def state_after_training(trained: Trained) -> State[Any] | None:
    """The final state of a flow run whose training did not finish; None if it finished."""
    ending = ending_of_training(
        trained.status, trained.reason, trained.run_id, trained.total_steps, waited=trained.waited
    )
    if ending is None:
        return None
    return state_after_stop(ending) if trained.status == RunStatus.INTERRUPTED else to_state(ending)


def begin(parameters: TrainParameters, context: JobContext) -> tuple[ExperimentConfig, str]:
    """Load the flow run's experiment, and derive the id of its training run.

    Both are the same in each attempt of the flow run.

    Raises:
        ConfigError: the experiment is invalid, or this machine cannot train it.
    """
    run_id = run_id_for(flow_run.id)
    config = load_config(parameters.config, parameters.overrides)
    check_machine(config)
    prepare(config, context)
    begun = experiment_of_attempt(config, run_id, context)
    if begun is not None:
        say(f"resuming {run_id}, attempt {flow_run.run_count} of this flow run")
        return begun, run_id
    if parameters.next_seed:
        config = run_stage("seed", config.name, lambda: jobs.next_seed(config, run_id, context))
    return config, run_id


def check_machine(config: ExperimentConfig, *, workers: int = 1) -> None:
    """Refuse an experiment that this machine cannot train; see `why_unsuitable`.

    Args:
        config: the experiment.
        workers: how many processes train such an experiment at a time.

    Raises:
        ConfigError: this machine cannot train it.
    """
    machine = this_machine()
    if (reason := why_unsuitable(config, machine, workers=workers)) is not None:
        raise ConfigError(reason)
    if (warning := why_slow(config, machine, workers=workers)) is not None:
        say(warning)


def prepare(config: ExperimentConfig, context: JobContext) -> None:
    """Prepare the runs folder and repair the registry.

    It is a stage, so that it is retried if the database is unreachable when the flow run begins.
    """
    for repair in run_stage("prepare", config.name, lambda: jobs.prepare(config, context)):
        say(f"repaired: {repair}")


def train(config: ExperimentConfig, run_id: str, context: JobContext) -> Trained:
    """Train or resume, with a progress bar in Prefect's page and on the terminal."""

    def work() -> Trained:
        stop = threading.Event()
        with (
            stopping_on_signals(stop),
            newer_attempt.stopping_if_superseded(stop),
            TrainingProgress(config, run_id) as page,
            training_display(config, say) as display,
        ):
            try:
                trained = train_attempt(
                    config,
                    context,
                    run_id,
                    stop=stop,
                    on_progress=_call_both(display.progress, page.progress),
                    on_selection=_call_both(display.selection, page.selection),
                )
            except TrainingInterrupted as interrupted:
                return Trained(run_id, RunStatus.INTERRUPTED, str(interrupted), 0, 0.0, waited=True)
        show_training(config, trained, context)
        return trained

    return run_stage("train", config.name, work)


def _call_both(
    first: Callable[[Event], None], second: Callable[[Event], None]
) -> Callable[[Event], None]:
    def both(event: Event) -> None:
        first(event)
        second(event)

    return both


def register(run_id: str, context: JobContext) -> int:
    """Register the run's policy; repeated, it returns the same version."""
    return run_stage("register", run_id, lambda: jobs.register_stage(run_id, context))


def screen(config: ExperimentConfig, version: int, context: JobContext) -> str:
    """Evaluate a version on screening seeds; returns the result in one line."""
    subject = f"{model_name(config.task)} v{version}"
    return run_stage("screen", subject, lambda: jobs.screen_stage(config, version, context))


def judge_and_promote(
    config: ExperimentConfig, version: int, context: JobContext
) -> tuple[jobs.GateResult, Promotion | None]:
    """Judge a version, and promote it if the gate says so.

    If another version is promoted meanwhile, this one is judged again, against the new champion.

    Returns:
        The verdict, and the ledger's row if the version was promoted.

    Raises:
        PromotionConflict: the champion changed during each of `MAX_JUDGEMENTS` judgements.
    """
    subject = f"{model_name(config.task)} v{version}"
    for judgement in range(1, MAX_JUDGEMENTS + 1):
        judged = run_stage("gate", subject, lambda: jobs.gate_stage(config, version, context))
        if promoted_by_earlier_attempt(
            judged.decision, judged.is_champion, flow_run.run_count or 1
        ):
            judged = replace(judged, decision=GateDecision.PROMOTE)
        if judged.decision != GateDecision.PROMOTE:
            return judged, None
        assert judged.verdict_id is not None, "only a verdict promotes"
        try:
            promotion = promote(judged.verdict_id, subject, context)
        except PromotionConflict as conflict:
            if judgement == MAX_JUDGEMENTS:
                raise
            say(f"judging again: {conflict}")
            continue
        return judged, promotion
    raise AssertionError("the loop returns or raises")


def promote(verdict_id: str, subject: str, context: JobContext) -> Promotion:
    """Promote, and emit an event; repeated, it repairs the alias and emits the event again."""

    def work() -> Promotion:
        promotion = promote_verdict(verdict_id, context)
        emit_model_event(
            PROMOTED_EVENT,
            promotion.model,
            promotion.version,
            {"verdict": verdict_id, "digest": promotion.digest},
        )
        return promotion

    return run_stage("promote", subject, work)


def emit_model_event(event: str, model: str, version: int, payload: dict[str, Any]) -> None:
    """Emit an event about a model's version, for automations."""
    emit_event(
        event=event,
        resource={
            "prefect.resource.id": f"mario.model.{model}",
            "prefect.resource.name": model,
            "mario.task": task_of_model(model),
            "mario.version": str(version),
        },
        payload=payload,
    )


def summarise(
    config: ExperimentConfig, run_id: str, judged: jobs.GateResult, context: JobContext
) -> jobs.SummaryFiles | None:
    """Write the summary page, the report and the video, and show the verdict in Prefect's page."""
    verdict_id = judged.verdict_id
    if verdict_id is None:
        show_judgement(config, judged, context, {})
        return None

    def work() -> jobs.SummaryFiles:
        made = jobs.summary_stage(config, run_id, verdict_id, context)
        files = {"report": made.report, "summary": made.page, "video": made.video}
        links = {name: file_link(path, context) for name, path in files.items()}
        show_judgement(config, judged, context, links)
        return made

    return run_stage("summary", config.name, work)


def show_judgement(
    config: ExperimentConfig, judged: jobs.GateResult, context: JobContext, links: dict[str, str]
) -> None:
    """Show a verdict in Prefect's page, with links to its files and its MLflow run."""
    model, verdict_id = model_name(config.task), judged.verdict_id
    if verdict_id is None:
        show_page(f"verdict-{model}", f"{model}: {judged.decision}", judged.lines)
        return

    def show() -> None:
        store = context.store
        stored = store.evaluations.verdict(verdict_id)
        versions = {version.version: version for version in store.versions.list(model)}
        challenger = versions.get(stored.challenger_version)
        run_id = None if challenger is None else challenger.run_id
        run = None if run_id is None else store.runs.find(run_id)
        tracked = mlflow_link(context, None if run is None else run.mlflow_run_id)
        show_verdict(
            stored.model,
            f"{model} v{stored.challenger_version}: {stored.decision}",
            verdict_id,
            judged.lines,
            verdict_rows(stored.detail),
            {**links, "MLflow": tracked},
        )

    safely("the verdict", show)


def verdict_rows(detail: Any) -> Sequence[dict[str, Any]]:
    """List a verdict's numbers as rows, challenger beside champion."""
    challenger, champion = detail["challenger"], detail["champion"]
    rows = [
        {
            "what": name.replace("_", " "),
            "challenger": round(challenger[name], 4),
            "champion": round(champion[name], 4),
        }
        for name in challenger
        if isinstance(challenger[name], int | float) and name in champion
    ]
    return [
        *rows,
        {"what": "units", "challenger": detail["units"], "champion": detail["units"]},
        {"what": "p-value", "challenger": float(f"{detail['p_value']:.3g}"), "champion": None},
    ]
