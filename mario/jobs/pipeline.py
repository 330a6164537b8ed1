"""The stages of the pipeline: small functions over ids, so that any launcher can string them up."""

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
class Judged:
    """What the gate stage hands on.

    Attributes:
        verdict_id: the stored verdict; None where the version is the policy of a champion that no
            verdict made champion (the first one may be promoted by hand).
        decision: promote, reject or inconclusive; `same` where the version is the champion's own
            policy, and `verdict_id` the verdict that made it champion.
        lines: the verdict in words.
        is_champion: whether this very version is champion now, by this verdict.
    """

    verdict_id: str | None
    decision: str
    lines: tuple[str, ...]
    is_champion: bool = False


def prepare(config: ExperimentConfig, context: JobContext) -> tuple[str, ...]:
    """Bring store and registry into shape, and repair what a killed pipeline left.

    Returns:
        What was repaired, in words.
    """
    context.settings.runs_dir.mkdir(parents=True, exist_ok=True)
    repairs = context.registry.reconcile(model_name(config.task))
    return tuple(repair.what for repair in repairs)


def register_stage(run_id: str, context: JobContext) -> int:
    """Register the run's policy; returns the version's number."""
    version = register_run(run_id, context).version
    assert version is not None, "a complete registration has a number"
    return version


def screen_stage(config: ExperimentConfig, version: int, context: JobContext) -> str:
    """A quick look on screening seeds; returns the evaluation in one line.

    A network that does not answer as recorded is played all the same: the gate refuses it, with the
    number in a verdict, where an error here would leave none.
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
) -> Judged:
    """Judge the version against whoever is champion now."""
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
    return Judged(outcome.verdict_id, outcome.verdict.decision, tuple(verdict_lines(outcome)))


def _same_policy(
    store: ExperimentStore,
    config: ExperimentConfig,
    challenger: LoadedPolicy,
    champion: LoadedPolicy,
) -> Judged:
    """A version that is the champion's very policy: the verdict that promoted it still stands.

    It comes from training again with the same configuration, seed and commit, or from going on
    after a kill between the ledger and the alias.
    """
    rows = store.ledger.history(model_name(config.task))
    # Not the last row alone: a rollback made it champion again, and has no verdict of its own.
    stands = [row.verdict_id for row in rows if row.digest == champion.digest and row.verdict_id]
    line = (
        f"SAME: {challenger.label} is the policy of {champion.label}, byte for byte; there is "
        "nothing to judge (another seed gives another policy: --set seed=…)"
    )
    if not stands:
        return Judged(None, "same", (line, f"- {champion.label} was promoted without a verdict"))
    now = rows[-1]
    is_champion = (now.version, now.verdict_id) == (challenger.version, stands[-1])
    return Judged(stands[-1], "same", (line,), is_champion)


def next_seed(config: ExperimentConfig, run_id: str, context: JobContext) -> ExperimentConfig:
    """The experiment with a seed that no other run of the task has: its own, or the next free one.

    The seed is the run's from now on: pipelines that begin together get different ones, and a run
    that is killed before it trained gets the same one again.
    """
    seed = context.store.runs.reserve_seed(run_id, config.task, config.seed)
    return config.model_copy(update={"seed": seed})


@dataclass(frozen=True)
class Summarised:
    """Where the pages and the video are.

    Attributes:
        page: the HTML summary.
        report: the verdict's own page, with every number; the same as JSON is beside it.
        video: the MP4 of the challenger's median episode.
    """

    page: Path
    report: Path
    video: Path


def summary_stage(
    config: ExperimentConfig, run_id: str, verdict_id: str, context: JobContext
) -> Summarised:
    """Record the median episode and write the summary page into the run's folder."""
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
    # The episode that the verdict's page shows as the median, too.
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
    return Summarised(page, report, video)
