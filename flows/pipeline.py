"""The pipeline as a Prefect flow: train → register → screen → gate → promote → summary."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from prefect import flow, task
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field

from mario.config import ExperimentConfig, load_config
from mario.errors import PolicyCollapsed, TrainingInterrupted
from mario.jobs import pipeline as stages
from mario.jobs.promote import promote_verdict
from mario.jobs.runtime import Runtime
from mario.jobs.terminal import TrainingDisplay
from mario.jobs.train import stopping_on_signals
from mario.registry import model_name

Result = TypeVar("Result")


class PipelineResult(BaseModel):
    """What a pipeline leaves.

    Attributes:
        run_id: the training run.
        version: the registered version.
        decision: what the gate said.
        verdict_id: the stored verdict.
        verdict: it, in words.
        promoted: whether the version is the champion now.
        summary: the HTML page.
        report: the verdict's own page.
        video: the MP4.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    version: int
    decision: str
    verdict_id: str
    verdict: tuple[str, ...]
    promoted: bool
    summary: Path
    report: Path
    video: Path


class PipelineParameters(BaseModel):
    """What a person fills in to start a pipeline.

    Attributes:
        config: path of the experiment's YAML.
        overrides: ``key=value`` each; they win over the file.
        next_seed: train with a seed of its own (the file's plus the number of earlier runs).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: str = Field("configs/demo.yaml", description="Path of the experiment's YAML.")
    overrides: tuple[str, ...] = Field((), description="key=value each, such as total_steps=50000.")
    next_seed: bool = Field(
        False, description="Add the number of earlier runs to the seed, so that no two are alike."
    )


DEFAULT_PARAMETERS = PipelineParameters()


def stage(name: str) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Make a stage a Prefect task: no retries, since each stage can be repeated by hand."""

    def wrap(function: Callable[..., Result]) -> Callable[..., Result]:
        return task(name=name, retries=0, persist_result=False)(function)

    return wrap


@stage("train")
def _train(config: ExperimentConfig, runtime: Runtime) -> stages.Trained:
    stop = threading.Event()
    with stopping_on_signals(stop), TrainingDisplay(config) as display:
        return stages.train_stage(
            config,
            runtime,
            stop=stop,
            on_progress=display.progress,
            on_selection=display.selection,
        )


@stage("register")
def _register(run_id: str, runtime: Runtime) -> int:
    return stages.register_stage(run_id, runtime)


@stage("screen")
def _screen(config: ExperimentConfig, version: int, runtime: Runtime) -> str:
    return stages.screen_stage(config, version, runtime)


@stage("gate")
def _gate(config: ExperimentConfig, version: int, runtime: Runtime) -> stages.Judged:
    return stages.gate_stage(config, version, runtime)


@stage("promote")
def _promote(verdict_id: str, runtime: Runtime) -> int:
    return promote_verdict(verdict_id, runtime).version


@stage("summary")
def _summary(
    config: ExperimentConfig, run_id: str, verdict_id: str, runtime: Runtime
) -> stages.Summarised:
    return stages.summary_stage(config, run_id, verdict_id, runtime)


def _run_name() -> str:
    parameters = flow_run.parameters["parameters"]
    return f"pipeline {Path(dict(parameters).get('config', 'demo')).stem}"


@flow(name="pipeline", flow_run_name=_run_name, persist_result=False, validate_parameters=True)
def pipeline(parameters: PipelineParameters = DEFAULT_PARAMETERS) -> PipelineResult:
    """Train a policy and let the evidence decide whether it becomes the champion.

    Raises:
        ConfigError: the experiment is not one.
        PolicyCollapsed: the policy degenerated; its best checkpoint is kept, nothing is registered.
        TrainingInterrupted: training was ended on request.
    """
    config = load_config(parameters.config, parameters.overrides)
    runtime = Runtime.from_environment()
    for repair in stages.prepare(config, runtime):
        print(f"repaired: {repair}")
    if parameters.next_seed:
        config = stages.next_seed(config, runtime)
    return run_stages(config, runtime)


def run_stages(config: ExperimentConfig, runtime: Runtime) -> PipelineResult:
    """String the stages up; what each of them does is in `mario.jobs`."""
    trained = _train(config, runtime)
    if trained.status in ("collapsed", "diverged"):
        raise PolicyCollapsed(
            f"run {trained.run_id} {trained.status}: {trained.reason}; expected a policy that "
            f"keeps learning; its best checkpoint is kept in {runtime.run_dir(trained.run_id)}"
        )
    if trained.status != "finished":
        raise TrainingInterrupted(
            f"run {trained.run_id} was interrupted at {trained.total_steps:,} steps; go on with: "
            f"mario train --resume {trained.run_id}"
        )
    version = _register(trained.run_id, runtime)
    print(f"registered {model_name(config.task)} version {version}")
    print(f"screening: {_screen(config, version, runtime)}")
    judged = _gate(config, version, runtime)
    promoted = judged.decision == "promote"
    if promoted or judged.decision == "same":  # the same: only brings the alias in line
        _promote(judged.verdict_id, runtime)
    made = _summary(config, trained.run_id, judged.verdict_id, runtime)
    return PipelineResult(
        run_id=trained.run_id,
        version=version,
        decision=judged.decision,
        verdict_id=judged.verdict_id,
        verdict=judged.lines,
        promoted=promoted,
        summary=made.page,
        report=made.report,
        video=made.video,
    )
