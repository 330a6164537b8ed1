"""Evaluate: play units under mario-eval-v1, every finished episode stored once, resumable."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from pydantic import ValidationError

from mario.config.evaluation import EvaluationConfig
from mario.config.experiment import ExperimentConfig, load_config
from mario.config.game import ConsoleName
from mario.config.levels import task_levels
from mario.errors import ConfigError, EvaluationError
from mario.evaluation.records import PROTOCOL, EpisodeRecord, write_jsonl
from mario.evaluation.seeds import SeedFamily, schedule
from mario.evaluation.statistics import clopper_pearson
from mario.jobs.context import JobContext
from mario.jobs.engines.engine import LOCAL, EvaluationEngine, open_engine
from mario.jobs.policies import LoadedPolicy, load_policy
from mario.store.records import EvaluationKey
from mario.store.store import ExperimentStore

#: The task meant where none is named.
DEFAULT_TASK = "1-1"
#: Episodes are stored in groups of this many seconds, so that a killed job loses no more.
_STORE_EVERY_SECONDS = 2.0

OnProgress = Callable[[int, int], None]
#: Families that anybody may play as often as they like; `confirmation` is the gate's.
OPEN_FAMILIES = (SeedFamily.SELECTION, SeedFamily.SCREENING)


@dataclass(frozen=True)
class EvaluationOutcome:
    """A finished evaluation.

    Attributes:
        evaluation_id: its id in the store.
        records: one for each unit, in the order asked for.
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
    environments: int = 8,
    console: ConsoleName = "native",
    planned_units: int | None = None,
    run_id: str | None = None,
    finish: bool = True,
    engine: EvaluationEngine = LOCAL,
    on_progress: OnProgress | None = None,
) -> EvaluationOutcome:
    """Play what is not stored yet of some units, and return the records of all of them.

    Args:
        loaded: who plays.
        units: (level, seed) each, every unit once.
        key: the evaluation that they belong to.
        store: where finished episodes are looked up and kept.
        environments: units that one process plays at once.
        console: which emulator.
        planned_units: how many units the whole evaluation has; None: these.
        run_id: the training run it belongs to.
        finish: mark the evaluation finished at the end.
        engine: where they are played; changes no record.
        on_progress: called with (finished, all) after each episode.

    Raises:
        EvaluationError, StoreError: see the protocol and the store.
    """
    evaluation = store.evaluations.open(
        key,
        planned_units=planned_units or len(units),
        policy_label=loaded.label,
        run_id=run_id,
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


def family_named(name: str) -> SeedFamily:
    """Check the name of a seed family that anybody may play.

    Raises:
        EvaluationError: there is no such family, or it is the gate's alone.
    """
    if name not in OPEN_FAMILIES:
        raise EvaluationError(
            f"got seed family {name!r}; expected one of {', '.join(OPEN_FAMILIES)}; "
            "confirmation seeds belong to one test of one challenger, which `mario gate` pays for "
            "and plays"
        )
    return SeedFamily(name)


def task_and_levels(
    task: str | None, config: ExperimentConfig | None
) -> tuple[str, tuple[str, ...]]:
    """Name the task and its levels: both from the experiment where there is one.

    Raises:
        ConfigError: the task is not the experiment's, or a name that only an experiment explains.
    """
    if config is None:
        chosen = task or DEFAULT_TASK
        return chosen, task_levels(chosen)
    if task not in (None, config.task):
        raise ConfigError(
            f"got task {task!r} beside an experiment of task {config.task!r}; expected one of "
            "them; leave --task away"
        )
    return config.task, config.level_names


def units_of(
    levels: Sequence[str], family: SeedFamily, source: str, count: int
) -> tuple[tuple[str, int], ...]:
    """The first `count` units of a family, whole blocks of all levels."""
    blocks = schedule(levels, family, key=source, units=count)
    return tuple(unit.key for block in blocks for unit in block)


def summary_line(loaded: LoadedPolicy, records: Sequence[EpisodeRecord]) -> str:
    """Say an evaluation in one line."""
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


def engine_settings(
    config: ExperimentConfig | None,
    engine: str | None,
    workers: int | None,
    scheduler: str | None,
) -> EvaluationConfig:
    """Where to evaluate: as the experiment says, unless the command line says otherwise.

    Args:
        config: the experiment, if one was named.
        engine: ``local`` or ``dask``; None = dask where workers or a scheduler are named.
        workers: of a Dask cluster on this machine.
        scheduler: address of a Dask scheduler that runs.

    Raises:
        ConfigError: the settings do not fit together.
    """
    given = EvaluationConfig() if config is None else config.evaluation
    if engine is None and workers is None and scheduler is None:
        return given
    values = given.model_dump() | {
        "engine": engine or "dask",
        "workers": workers or 0,
        "scheduler": scheduler,
    }
    try:
        return EvaluationConfig.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(
            str(fault["ctx"]["error"])
            if fault["type"] == "value_error"
            else f"--{fault['loc'][0]}: got {fault['input']!r}, expected {fault['ctx']['expected']}"
            for fault in error.errors()
        )
        raise ConfigError(faults) from None


def evaluate_from_terminal(
    reference: str,
    task: str | None,
    context: JobContext,
    *,
    config: Path | None,
    units: int,
    family: str,
    environments: int,
    console: str,
    output: Path | None,
    engine: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
) -> EvaluationOutcome:
    """What `mario evaluate` does."""
    chosen = family_named(family)
    experiment = None if config is None else load_config(config)
    task, levels = task_and_levels(task, experiment)
    settings = engine_settings(experiment, engine, workers, scheduler)
    loaded = load_policy(reference, task, context)

    def show(done: int, total: int) -> None:
        print(f"\r{done}/{total} units", end="", file=sys.stderr, flush=True)

    with open_engine(settings) as players:
        outcome = evaluate_stored(
            loaded,
            units_of(levels, chosen, "", units),
            evaluation_key(loaded, chosen, "", levels),
            context.store,
            environments=environments,
            console=cast(ConsoleName, console),
            engine=players,
            on_progress=show if sys.stderr.isatty() else None,
        )
    print(summary_line(loaded, outcome.records))
    print(f"evaluation {outcome.evaluation_id} in {context.store.redacted_url}")
    if output is not None:
        write_jsonl(output, outcome.records)
    return outcome
