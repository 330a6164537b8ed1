"""The flow `pipeline`: train → register → screen → gate → promote → summary.

Screening evaluates the new version for information only; the gate alone decides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import raise_state_exception
from pydantic import BaseModel, ConfigDict

from flows import stages
from flows.decisions import ending_of_verdict
from flows.parameters import TrainParameters, experiment_run_name
from flows.training_display import OpenDisplay, showing_with
from mario.config.levels import model_name
from mario.errors import PolicyCollapsed, TrainingInterrupted
from mario.jobs.context import JobContext


class PipelineParameters(TrainParameters):
    """An experiment to train, judge and promote."""


class PipelineResult(BaseModel):
    """The result of a pipeline.

    Attributes:
        run_id: the training run.
        version: the registered version.
        decision: the gate's.
        verdict_id: the stored verdict; None if the version has the policy of a champion that was
            promoted without a verdict.
        verdict: the verdict in words.
        promoted: whether the version was promoted.
        summary: the summary page (HTML); None without a verdict.
        report: the verdict's page (HTML).
        video: the video (MP4).
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    version: int
    decision: str
    verdict_id: str | None
    verdict: tuple[str, ...]
    promoted: bool
    summary: Path | None
    report: Path | None
    video: Path | None


@flow(name="pipeline", flow_run_name=experiment_run_name, persist_result=False)
def pipeline(parameters: PipelineParameters = PipelineParameters()) -> State[Any]:  # noqa: B008
    """Train a policy, register it, and promote it if it is better than the champion.

    Ends as Promoted, Kept (the gate kept the champion), Unchanged (the champion has the same
    policy), Collapsed (the best checkpoint is kept, nothing is registered), Interrupted (the run
    can be resumed) or Failed.
    """
    if (too_often := stages.out_of_attempts()) is not None:
        return too_often
    with JobContext.open() as context:
        config, run_id = stages.begin(parameters, context)
        trained = stages.train(config, run_id, context)
        if (ended := stages.state_after_training(trained)) is not None:
            return ended
        version = stages.register(trained.run_id, context)
        stages.say(f"registered {model_name(config.task)} version {version}")
        stages.say(f"screening: {stages.screen(config, version, context)}")
        judged, promotion = stages.judge_and_promote(config, version, context)
        made = stages.summarise(config, trained.run_id, judged, context)
        result = PipelineResult(
            run_id=trained.run_id,
            version=version,
            decision=judged.decision,
            verdict_id=judged.verdict_id,
            verdict=judged.lines,
            promoted=promotion is not None,
            summary=made and made.page,
            report=made and made.report,
            video=made and made.video,
        )
        return stages.to_state(ending_of_verdict(judged.decision, version, judged.lines), result)


def run_pipeline(
    parameters: PipelineParameters, open_display: OpenDisplay | None = None
) -> PipelineResult:
    """Run the pipeline in this process.

    Args:
        parameters: the experiment.
        open_display: opens the display of the training; None prints lines.

    Raises:
        PolicyCollapsed: the policy degenerated; its best checkpoint is kept, nothing is registered.
        TrainingInterrupted: training was stopped on request.
        MarioError: a stage failed.
    """
    with showing_with(open_display):
        state: State[Any] = pipeline(parameters, return_state=True)
    if state.is_completed():
        result: Any = state.result()
        assert isinstance(result, PipelineResult), "a completed pipeline has a result"
        return result
    if state.name == "Collapsed":
        raise PolicyCollapsed(state.message)
    if state.name == "Interrupted":
        raise TrainingInterrupted(state.message)
    raise_state_exception(state)
    raise AssertionError("a pipeline that did not end well has a reason")
