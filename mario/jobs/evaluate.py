"""Evaluate: play units under mario-eval-v1 and store every finished episode once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mario.config.evaluation import ENVIRONMENTS, PROTOCOL
from mario.config.game import ConsoleName
from mario.evaluation.records import EpisodeRecord
from mario.evaluation.seeds import SeedFamily, units_of
from mario.evaluation.statistics import clopper_pearson
from mario.jobs.engines.contract import EvaluationEngine
from mario.jobs.engines.local import LOCAL
from mario.jobs.policies import LoadedPolicy
from mario.store.records import EvaluationKey
from mario.store.store import ExperimentStore

#: Episodes are stored about this often, which bounds what a killed job loses.
_STORE_EVERY_SECONDS = 2.0

OnEpisode = Callable[[int, int], None]


@dataclass(frozen=True)
class EvaluationOutcome:
    """A finished evaluation.

    Attributes:
        evaluation_id: its id in the store.
        records: the record of each unit, in the order of the units.
    """

    evaluation_id: str
    records: tuple[EpisodeRecord, ...]


def evaluation_key(
    loaded: LoadedPolicy, family: SeedFamily, source: str, levels: Sequence[str]
) -> EvaluationKey:
    """Name the evaluation of a policy on a family of seeds."""
    return EvaluationKey(
        policy_digest=loaded.digest,
        protocol=PROTOCOL,
        seed_family=family,
        seed_source=source,
        levels=tuple(levels),
    )


def evaluate_stored(
    loaded: LoadedPolicy,
    units: Sequence[tuple[str, int]],
    key: EvaluationKey,
    store: ExperimentStore,
    *,
    environments: int = ENVIRONMENTS,
    console: ConsoleName = "native",
    planned_units: int | None = None,
    finish: bool = True,
    engine: EvaluationEngine = LOCAL,
    on_progress: OnEpisode | None = None,
) -> EvaluationOutcome:
    """Play the units that are not stored yet, and return the records of all units.

    Args:
        loaded: the policy that plays.
        units: (level, seed) each, every unit once.
        key: the evaluation that they belong to.
        store: keeps the episodes.
        environments: units that one process plays at once.
        console: the console.
        planned_units: number of units of the whole evaluation; None is the number of `units`.
        finish: mark the evaluation as finished at the end.
        engine: where the units are played; changes no record.
        on_progress: called with (finished, all) after each episode.

    Raises:
        EvaluationError: a unit is impossible, or the engine cannot play.
        StoreError: the store is unreachable.
    """
    evaluation = store.evaluations.open(
        key,
        planned_units=planned_units or len(units),
        policy_label=loaded.label,
    )
    records = {record.unit: record for record in store.evaluations.records(evaluation.id)}
    missing = [unit for unit in units if unit not in records]
    waiting: list[EpisodeRecord] = []
    stored_at = time.monotonic()
    done = len(units) - len(missing)
    try:
        for record in engine.play(loaded, missing, environments=environments, console=console):
            records[record.unit] = record
            waiting.append(record)
            done += 1
            if time.monotonic() - stored_at > _STORE_EVERY_SECONDS:
                store.evaluations.add(evaluation.id, waiting)
                waiting, stored_at = [], time.monotonic()
            if on_progress is not None:
                on_progress(done, len(units))
    finally:
        if waiting:
            store.evaluations.add(evaluation.id, waiting)
    if finish:
        store.evaluations.finish(evaluation.id)
    return EvaluationOutcome(evaluation.id, tuple(records[unit] for unit in units))


def evaluate_family(
    loaded: LoadedPolicy,
    levels: Sequence[str],
    family: SeedFamily,
    count: int,
    store: ExperimentStore,
    *,
    source: str = "",
    environments: int = ENVIRONMENTS,
    console: ConsoleName = "native",
    engine: EvaluationEngine = LOCAL,
    on_progress: OnEpisode | None = None,
) -> EvaluationOutcome:
    """Play the first units of a seed family; see `evaluate_stored`.

    Args:
        loaded: the policy that plays.
        levels: the levels of the task.
        family: the seed family.
        count: number of units, at least that of levels; rounded down to whole blocks of all levels.
        store: keeps the episodes.
        source: distinguishes independent seeds of one family.
        environments: units that one process plays at once.
        console: the console.
        engine: where the units are played.
        on_progress: called with (finished, all) after each episode.
    """
    return evaluate_stored(
        loaded,
        units_of(levels, family, source, count),
        evaluation_key(loaded, family, source, levels),
        store,
        environments=environments,
        console=console,
        engine=engine,
        on_progress=on_progress,
    )


def summary_line(loaded: LoadedPolicy, records: Sequence[EpisodeRecord]) -> str:
    """Describe an evaluation in one line."""
    clears = sum(record.cleared for record in records)
    low, high = clopper_pearson(clears, len(records))
    furthest = np.array([record.furthest_px for record in records])
    score = np.mean([record.episode_score for record in records])
    return (
        f"{loaded.label}: {len(records)} units, cleared {clears} "
        f"({clears / len(records):.0%}, 95% interval {low:.0%} to {high:.0%}), furthest x "
        f"{furthest.mean():.0f} px on average ({furthest.min()} to {furthest.max()}), "
        f"score {score:.3f}"
    )
