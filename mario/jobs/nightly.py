"""Nightly: does the champion still play as it did when it became one?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mario.config.levels import model_name
from mario.errors import EvaluationError
from mario.evaluation.decision import GateDecision
from mario.evaluation.drift import Drift, compare_drift
from mario.evaluation.records import EpisodeRecord
from mario.evaluation.seeds import SeedFamily
from mario.jobs.context import JobContext
from mario.jobs.engines.contract import EvaluationEngine
from mario.jobs.engines.local import LOCAL
from mario.jobs.evaluate import evaluate_family
from mario.jobs.policies import LoadedPolicy, load_policy
from mario.store.records import Evaluation, Promotion, StoredVerdict
from mario.store.store import ExperimentStore
from mario.store.vocabulary import EvaluationStatus

#: Units of the promotion that are played again: each must repeat exactly.
_REPLAYED_UNITS = 4
#: Names the seeds of the baseline; every champion's is played on the same.
_BASELINE = "nightly baseline"
_NIGHT = "nightly "
#: Chance of an alarm by a night's fresh units where nothing changed.
DRIFT_ALPHA = 0.001


@dataclass(frozen=True)
class NightlyCheck:
    """What a night's look at the champion found.

    Attributes:
        model: ``mario-<task>``.
        version: the champion.
        verdict_id: the verdict that made it champion; some of its units are played again.
        baseline_id: the units in the store that the fresh ones are compared with.
        evaluation_id: the fresh units in the store.
        drift: the comparison.
    """

    model: str
    version: int
    verdict_id: str
    baseline_id: str
    evaluation_id: str
    drift: Drift


def check_champion(
    task: str,
    night: str,
    context: JobContext,
    *,
    units: int = 100,
    alpha: float = DRIFT_ALPHA,
    environments: int = 8,
    engine: EvaluationEngine = LOCAL,
) -> NightlyCheck:
    """Play fresh units with the champion and compare them with its baseline.

    The baseline is played once, by the first check after the promotion, and as many units as a
    night has. The promotion's own units will not do for it: the gate stopped because they went
    well. They are what is replayed, so that what changed between promotion and baseline is seen.

    The fresh seeds are derived from the night's name: each night has its own, and a check that was
    killed goes on with the same.

    Args:
        task: whose champion.
        night: names the seeds, usually the date.
        context: store and registry.
        units: fresh units, and units of the baseline; whole blocks of all levels.
        alpha: chance of an alarm by the fresh units where nothing changed.
        environments: units played at once.
        engine: where they are played.

    Raises:
        EvaluationError: there is no champion, or no verdict that promoted it.
    """
    store = context.store
    champion, verdict = _promotion(store, task)
    promotion = store.evaluations.records(verdict.challenger_evaluation_id)
    levels = store.evaluations.get(verdict.challenger_evaluation_id).key.levels
    loaded = load_policy(str(champion.version), task, context)
    baseline, fresh = (
        evaluate_family(
            loaded,
            levels,
            SeedFamily.SCREENING,
            max(units, len(levels)),
            store,
            source=source,
            environments=environments,
            engine=engine,
        )
        for source in (_BASELINE, _NIGHT + night)
    )
    replayed = _replay(loaded, promotion[:_REPLAYED_UNITS], environments, engine)
    drift = compare_drift(baseline.records, fresh.records, replayed=replayed, alpha=alpha)
    return NightlyCheck(
        champion.model,
        champion.version,
        verdict.id,
        baseline.evaluation_id,
        fresh.evaluation_id,
        drift,
    )


def newest_night(evaluations: Iterable[Evaluation]) -> tuple[Evaluation, Evaluation] | None:
    """The baseline and the newest night among a policy's evaluations, both played to the end.

    Args:
        evaluations: of one policy, the newest first, as the store lists them.

    Returns:
        What `check_champion` compared last; None before its first look.
    """
    done = [
        each
        for each in evaluations
        if each.status == EvaluationStatus.FINISHED and each.finished_units
    ]
    baselines = [each for each in done if each.key.seed_source == _BASELINE]
    nights = [
        each
        for each in done
        if each.key.seed_source.startswith(_NIGHT) and each.key.seed_source != _BASELINE
    ]
    # Of a task whose levels changed there may be one for each list of levels.
    for night in nights[:1]:
        for baseline in baselines:
            if baseline.key.levels == night.key.levels:
                return baseline, night
    return None


def _promotion(store: ExperimentStore, task: str) -> tuple[Promotion, StoredVerdict]:
    """The champion, and the verdict that made it one (before a rollback, where there was one)."""
    model = model_name(task)
    champion = store.ledger.champion(model)
    if champion is None:
        raise EvaluationError(
            f"{model} has no champion; expected one to look after; promote one by `mario pipeline`"
        )
    verdicts = [
        verdict
        for verdict in store.evaluations.verdicts(model)
        if verdict.challenger_digest == champion.digest and verdict.decision == GateDecision.PROMOTE
    ]
    if not verdicts:
        raise EvaluationError(
            f"{model} v{champion.version} has no verdict that promoted it; expected one to compare "
            "with; judge it with `mario gate`"
        )
    chosen = [verdict for verdict in verdicts if verdict.id == champion.verdict_id]
    return champion, (chosen or verdicts)[-1]


def _replay(
    loaded: LoadedPolicy,
    first: Sequence[EpisodeRecord],
    environments: int,
    engine: EvaluationEngine,
) -> list[tuple[EpisodeRecord, EpisodeRecord]]:
    """Play units again; each as it was and as it is now."""
    units = [record.unit for record in first]
    again = {
        record.unit: record
        for record in engine.play(loaded, units, environments=environments, console="native")
    }
    return [(record, again[record.unit]) for record in first]


def drift_lines(check: NightlyCheck) -> list[str]:
    """Say a night's finding in a few lines."""
    drift = check.drift
    word = "DRIFTED" if drift.drifted else "steady"
    return [
        f"{check.model} v{check.version}: {word}: score {drift.score_now:.3f} over "
        f"{drift.units_now} fresh units, {drift.score_before:.3f} over {drift.units_before} of its "
        f"baseline; cleared {drift.clear_now:.0%}, then {drift.clear_before:.0%}",
        *(f"- {reason}" for reason in drift.reasons),
    ]
