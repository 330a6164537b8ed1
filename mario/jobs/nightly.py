"""Nightly: check that the champion plays as it did when it was promoted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mario.config.evaluation import ENVIRONMENTS
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

#: Units of the promotion that are replayed; each must repeat exactly.
_REPLAYED_UNITS = 4
#: Seed source of the baseline, the same for every champion; prefix of a night's seed source.
_BASELINE = "nightly baseline"
_NIGHT = "nightly "
#: Probability of a false alarm in one night.
DRIFT_ALPHA = 0.001


@dataclass(frozen=True)
class NightlyCheck:
    """The result of a nightly check.

    Attributes:
        model: ``mario-<task>``.
        version: the champion.
        verdict_id: the verdict that promoted it; some of its units are replayed.
        evaluation_id: the stored evaluation of the fresh units.
        drift: the comparison.
    """

    model: str
    version: int
    verdict_id: str
    evaluation_id: str
    drift: Drift


def check_champion(
    task: str,
    night: str,
    context: JobContext,
    *,
    units: int = 100,
    alpha: float = DRIFT_ALPHA,
    environments: int = ENVIRONMENTS,
    engine: EvaluationEngine = LOCAL,
) -> NightlyCheck:
    """Play fresh units with the champion and compare them with its baseline.

    The first check after a promotion plays the baseline, with as many units as a night. The units
    of the promotion cannot be the baseline, because the gate stopped when they looked good; some
    of them are replayed, to detect a change between promotion and baseline.

    Fresh seeds are derived from the name of the night, so a check that was killed resumes with the
    same seeds.

    Args:
        task: the task whose champion is checked.
        night: name of the night, usually its date.
        context: store and registry.
        units: fresh units, and units of the baseline; whole blocks of all levels.
        alpha: probability of a false alarm.
        environments: units played at once.
        engine: where units are played.

    Raises:
        EvaluationError: there is no champion, or no verdict promoted it.
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
        fresh.evaluation_id,
        drift,
    )


def newest_night(evaluations: Iterable[Evaluation]) -> tuple[Evaluation, Evaluation] | None:
    """Find the baseline and the newest night among the finished evaluations of a policy.

    Args:
        evaluations: the policy's evaluations, newest first, as the store lists them.

    Returns:
        The two that `check_champion` compared last; None before the first check.
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
    # A task whose levels changed has a baseline for each list of levels.
    for night in nights[:1]:
        for baseline in baselines:
            if baseline.key.levels == night.key.levels:
                return baseline, night
    return None


def _promotion(store: ExperimentStore, task: str) -> tuple[Promotion, StoredVerdict]:
    """The champion and the verdict that promoted it (before a rollback, if there was one)."""
    model = model_name(task)
    champion = store.ledger.champion(model)
    if champion is None:
        raise EvaluationError(
            f"{model} has no champion; expected one to check; promote one with `mario pipeline`"
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
    """Replay units; returns the record of each then and now."""
    units = [record.unit for record in first]
    again = {
        record.unit: record
        for record in engine.play(loaded, units, environments=environments, console="native")
    }
    return [(record, again[record.unit]) for record in first]


def drift_lines(check: NightlyCheck) -> list[str]:
    """Describe a nightly check in a few lines."""
    drift = check.drift
    word = "DRIFTED" if drift.drifted else "steady"
    return [
        f"{check.model} v{check.version}: {word}: score {drift.score_now:.3f} over "
        f"{drift.units_now} fresh units, {drift.score_before:.3f} over {drift.units_before} of its "
        f"baseline; cleared {drift.clear_now:.0%}, then {drift.clear_before:.0%}",
        *(f"- {reason}" for reason in drift.reasons),
    ]
