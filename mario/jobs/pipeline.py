"""The stages of the pipeline: functions over ids, so that any launcher can run them in order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mario.config.experiment import ExperimentConfig
from mario.config.levels import model_name
from mario.evaluation.protocol import record_frames
from mario.evaluation.seeds import SeedFamily
from mario.evaluation.verdict import Verdict
from mario.game.video import write_mp4
from mario.jobs.context import JobContext
from mario.jobs.engines.factory import open_engine
from mario.jobs.evaluate import evaluate_family, evaluate_stored, evaluation_key, summary_line
from mario.jobs.gate import (
    OnUnits,
    champion_for,
    judge,
    load_challenger,
    verdict_lines,
)
from mario.jobs.policies import LoadedPolicy, load_policy, random_policy
from mario.jobs.register import register_run
from mario.jobs.report import counted_pairs, report_verdict
from mario.pages.summary_page import write_summary
from mario.pages.verdict_page import pick_episodes
from mario.store.store import ExperimentStore


@dataclass(frozen=True)
class GateResult:
    """The result of the gate stage.

    Attributes:
        verdict_id: the stored verdict; None if the version is the policy of a champion that was
            promoted without a verdict.
        decision: promote, reject or inconclusive; `same` if the version is the champion's own
            policy, and `verdict_id` is then the verdict that promoted it.
        lines: the verdict as text.
        is_champion: whether this version is the champion now, by this verdict.
    """

    verdict_id: str | None
    decision: str
    lines: tuple[str, ...]
    is_champion: bool = False


def prepare(config: ExperimentConfig, context: JobContext) -> tuple[str, ...]:
    """Create store and registry where missing, and repair what a killed pipeline left.

    Returns:
        A line for each repair.
    """
    context.settings.runs_dir.mkdir(parents=True, exist_ok=True)
    repairs = context.registry.reconcile(model_name(config.task))
    return tuple(repair.what for repair in repairs)


def register_stage(run_id: str, context: JobContext) -> int:
    """Register the policy of a run; returns the number of its version."""
    version = register_run(run_id, context).version
    assert version is not None, "a complete registration has a number"
    return version


def screen_stage(config: ExperimentConfig, version: int, context: JobContext) -> str:
    """Play a version on screening seeds; returns the evaluation in one line.

    A network whose answers differ from the recorded ones is played all the same: the gate rejects
    it with a verdict, which an error here would prevent.
    """
    loaded = load_policy(str(version), config.task, context, check_golden=False)
    levels = config.level_names
    count = max(config.evaluation.screening_units, len(levels))
    with open_engine(config.evaluation) as engine:
        outcome = evaluate_family(
            loaded,
            levels,
            SeedFamily.SCREENING,
            count,
            context.store,
            environments=config.evaluation.environments,
            console=config.game.console,
            engine=engine,
        )
    return summary_line(loaded, outcome.records)


def gate_stage(
    config: ExperimentConfig,
    version: int,
    context: JobContext,
    *,
    on_units: OnUnits | None = None,
) -> GateResult:
    """Test a version against the current champion."""
    with open_engine(config.evaluation) as engine:
        challenger = load_challenger(str(version), config.task, context)
        champion = champion_for(challenger, config.task, context)
        if champion.digest == challenger.digest:
            return _same_policy(context.store, config, challenger, champion)
        outcome = judge(
            challenger,
            champion,
            config.gate,
            config.task,
            config.level_names,
            context.store,
            environments=config.evaluation.environments,
            console=config.game.console,
            engine=engine,
            on_units=on_units,
        )
    return GateResult(outcome.verdict_id, outcome.verdict.decision, tuple(verdict_lines(outcome)))


def _same_policy(
    store: ExperimentStore,
    config: ExperimentConfig,
    challenger: LoadedPolicy,
    champion: LoadedPolicy,
) -> GateResult:
    """Return the verdict that promoted the champion, of which the version is the same policy.

    This happens when training is repeated with the same configuration, seed and commit, and when a
    pipeline resumes after a kill between ledger and alias.
    """
    rows = store.ledger.history(model_name(config.task))
    # Not only the last row: a rollback may have made it champion again, without a verdict.
    stands = [row.verdict_id for row in rows if row.digest == champion.digest and row.verdict_id]
    line = (
        f"SAME: {challenger.label} is the policy of {champion.label}, byte for byte; there is "
        "nothing to judge (another seed gives another policy: --set seed=…)"
    )
    if not stands:
        return GateResult(
            None, "same", (line, f"- {champion.label} was promoted without a verdict")
        )
    now = rows[-1]
    is_champion = (now.version, now.verdict_id) == (challenger.version, stands[-1])
    return GateResult(stands[-1], "same", (line,), is_champion)


def next_seed(config: ExperimentConfig, run_id: str, context: JobContext) -> ExperimentConfig:
    """Reserve a seed that no other run of the task has: the experiment's, or the next free one.

    Pipelines that begin at the same time get different seeds; a run that is killed before it
    trained gets the same seed again.

    Returns:
        The experiment with that seed.
    """
    seed = context.store.runs.reserve_seed(run_id, config.task, config.seed)
    return config.model_copy(update={"seed": seed})


@dataclass(frozen=True)
class SummaryFiles:
    """The files that the summary stage wrote.

    Attributes:
        page: the HTML summary.
        report: the page of the verdict, with every number; its JSON is beside it.
        video: the MP4 file of the challenger's median episode.
    """

    page: Path
    report: Path
    video: Path


def summary_stage(
    config: ExperimentConfig, run_id: str, verdict_id: str, context: JobContext
) -> SummaryFiles:
    """Write the summary, the verdict's page and the video of the median episode."""
    store = context.store
    stored = store.evaluations.verdict(verdict_id)
    verdict = Verdict.from_dict(dict(stored.detail))
    assert stored.challenger_version is not None, "the pipeline judges registered versions"
    challenger = load_policy(
        str(stored.challenger_version), config.task, context, check_golden=False
    )
    pairs = counted_pairs(store, stored, verdict)
    mine = tuple(pair.challenger for pair in pairs)
    theirs = tuple(pair.champion for pair in pairs)
    sides = [(challenger.label, mine)]
    baseline = random_policy(challenger.policy.actions, challenger.policy.frame_skip)
    if stored.champion_version is not None:
        test_key = store.evaluations.test_key(stored)
        sides.append((f"champion v{stored.champion_version}", theirs))
        theirs = evaluate_stored(
            baseline,
            [record.unit for record in mine],
            evaluation_key(baseline, SeedFamily.CONFIRMATION, test_key, verdict.levels),
            store,
            environments=config.evaluation.environments,
            console=config.game.console,
        ).records
    sides.append((baseline.label, theirs))
    episodes = tuple(store.runs.episodes(run_id))
    run = store.runs.get(run_id)
    now = store.ledger.champion(model_name(config.task))
    run_dir = context.settings.run_dir(run_id)
    video = run_dir / "median-episode.mp4"
    # The same episode as the median on the page of the verdict.
    median = pick_episodes(pairs, verdict.rule.primary)["median"]
    frames = record_frames(challenger.policy, median.unit, config.game.console)
    write_mp4(video, frames, challenger.policy.frame_skip)
    report = report_verdict(
        verdict_id, context, run_dir / "verdict.html", console=config.game.console
    )
    page = write_summary(
        run_dir / "summary.html",
        run=run,
        episodes=episodes,
        verdict_id=verdict_id,
        verdict=verdict,
        sides=sides,
        video=video,
        report=report,
        outcome="there is no champion yet"
        if now is None
        else f"the champion of {now.model} is version {now.version}",
    )
    return SummaryFiles(page, report, video)
