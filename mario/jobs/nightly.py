"""Nightly: does the champion still play as in the evaluation that promoted it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mario.errors import EvaluationError
from mario.evaluation.drift import Drift, compare_drift
from mario.evaluation.records import EpisodeRecord
from mario.jobs.engines import LOCAL, EvaluationEngine
from mario.jobs.evaluate import evaluate_stored, evaluation_key, units_of
from mario.jobs.policies import LoadedPolicy, load_policy
from mario.jobs.runtime import Runtime
from mario.registry import model_name
from mario.store.records import Promotion, Verdict
from mario.store.store import ExperimentStore

#: Units of the promotion that are played again: each must repeat exactly.
_REPLAYED_UNITS = 4


@dataclass(frozen=True)
class NightlyCheck:
    """What a night's look at the champion found.

    Attributes:
        model: ``mario-<task>``.
        version: the champion.
        verdict_id: the verdict whose units it is compared with.
        evaluation_id: the fresh units in the store.
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
    runtime: Runtime,
    *,
    units: int = 100,
    alpha: float = 0.001,
    environments: int = 8,
    engine: EvaluationEngine = LOCAL,
) -> NightlyCheck:
    """Play fresh units with the champion and compare them with those of its promotion.

    The seeds are derived from the night's name: each night has its own, and a check that was
    killed goes on with the same.

    Args:
        task: whose champion.
        night: names the seeds, usually the date.
        runtime: where store and registry are.
        units: fresh units, whole blocks of all levels.
        alpha: chance of an alarm by the fresh units where nothing changed.
        environments: units played at once.
        engine: where they are played.

    Raises:
        EvaluationError: there is no champion, or no verdict that promoted it.
    """
    with ExperimentStore.open(runtime.database_url) as store:
        champion, verdict = _promotion(store, task)
        before = store.evaluations.records(verdict.challenger_evaluation_id)
        levels = tuple(sorted({record.level for record in before}))
        loaded = load_policy(str(champion.version), task, runtime)
        source = f"nightly {night}"
        fresh = evaluate_stored(
            loaded,
            units_of(levels, "screening", source, max(units, len(levels))),
            evaluation_key(loaded, "screening", source, levels),
            store,
            environments=environments,
            engine=engine,
        )
        replayed = _replay(loaded, before, environments, engine)
    drift = compare_drift(before, fresh.records, replayed=replayed, alpha=alpha)
    return NightlyCheck(champion.model, champion.version, verdict.id, fresh.evaluation_id, drift)


def _promotion(store: ExperimentStore, task: str) -> tuple[Promotion, Verdict]:
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
        if verdict.challenger_digest == champion.digest and verdict.decision == "promote"
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
    before: Sequence[EpisodeRecord],
    environments: int,
    engine: EvaluationEngine,
) -> list[EpisodeRecord]:
    units = [record.unit for record in before[:_REPLAYED_UNITS]]
    return list(engine.play(loaded, units, environments=environments, console="native"))


def drift_lines(check: NightlyCheck) -> list[str]:
    """Say a night's finding in a few lines."""
    drift = check.drift
    word = "DRIFTED" if drift.drifted else "steady"
    return [
        f"{check.model} v{check.version}: {word}: score {drift.score_now:.3f} over "
        f"{drift.units_now} fresh units, {drift.score_before:.3f} over {drift.units_before} when "
        f"it was promoted; cleared {drift.clear_now:.0%}, then {drift.clear_before:.0%}",
        *(f"- {reason}" for reason in drift.reasons),
    ]
