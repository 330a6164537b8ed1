"""`mario store import-legacy`: runs of the older project, so that no past run is lost.

The older project keeps ``experiments``, ``hyperparameters``, ``episodes`` and
``training_metrics`` in PostgreSQL. Its columns changed over time, so each value is looked for
under several names; what no name here fits is kept as JSON beside the row, never dropped.
``docs/guides/store.md`` lists the names.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from mario.errors import StoreError
from mario.store import models
from mario.store.engine import encode_json, parse_url, redact, sqlite_path, translated, writing
from mario.store.runs import flatten
from mario.store.store import ExperimentStore
from mario.store.write import insert_into, upsert

_ROWS_A_BATCH = 5_000

#: Names under which a value of the older tables is looked for, the first that exists counts.
EXPERIMENT_NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "experiment_id", "run_id"),
    "name": ("name", "experiment_name", "run_name", "title"),
    "algorithm": ("algorithm", "algo", "agent", "model_type"),
    "config": ("config", "configuration", "config_json", "params"),
    "status": ("status", "state"),
    "started_at": ("created_at", "started_at", "start_time", "timestamp", "date"),
    "ended_at": ("completed_at", "ended_at", "finished_at", "end_time", "updated_at"),
    "git_commit": ("git_commit", "git_hash", "commit_hash"),
    "level": ("level", "stage_name"),
}
HYPERPARAMETER_NAMES: Mapping[str, tuple[str, ...]] = {
    "experiment_id": ("experiment_id", "run_id"),
    "name": ("name", "param_name", "parameter_name", "parameter", "key"),
    "value": ("value", "param_value", "parameter_value"),
}
EPISODE_NAMES: Mapping[str, tuple[str, ...]] = {
    "experiment_id": ("experiment_id", "run_id"),
    "number": ("episode_number", "episode_num", "episode", "episode_index", "episode_id"),
    "env_index": ("env_index", "env_id", "environment", "env"),
    "total_steps": ("total_steps", "total_timesteps", "global_step", "timestep", "step"),
    "length_steps": ("length", "episode_length", "steps", "num_steps", "length_steps", "duration"),
    "shaped_return": ("total_reward", "episode_reward", "reward", "shaped_return", "score_total"),
    "furthest_x_px": ("max_x_pos", "max_x", "furthest_x", "max_x_position", "x_pos", "distance"),
    "end_reason": ("end_reason", "termination_reason", "death_reason", "outcome"),
    "seed": ("seed",),
    "level": ("level",),
    "x_px": ("x_pos", "x_position", "final_x_pos", "final_x", "x"),
    "y_px": ("y_pos", "y_position", "y"),
    "score": ("score", "final_score"),
    "coins": ("coins", "coins_collected"),
    "time_left": ("time_left", "time", "time_remaining"),
    "life": ("life", "lives"),
    "status": ("status", "mario_status"),
    "world": ("world",),
    "stage": ("stage",),
    "area": ("area",),
    "flag": ("flag_get", "flag", "completed", "level_completed", "cleared", "level_complete"),
    "ended_at": ("created_at", "ended_at", "timestamp", "completed_at", "time_stamp"),
}
METRIC_NAMES: Mapping[str, tuple[str, ...]] = {
    "experiment_id": ("experiment_id", "run_id"),
    "total_steps": (
        "total_steps",
        "timestep",
        "timesteps",
        "total_timesteps",
        "global_step",
        "step",
    ),
    "at": ("created_at", "timestamp", "recorded_at", "time"),
    "name": ("metric_name", "name", "key"),
    "value": ("metric_value", "value"),
}
_STATUSES = {
    "completed": "finished", "complete": "finished", "finished": "finished", "done": "finished",
    "success": "finished", "failed": "failed", "error": "failed", "crashed": "failed",
    "collapsed": "collapsed", "killed": "killed",
}  # fmt: skip
_MARIO_STATUS = {"small": 0, "tall": 1, "big": 1, "fireball": 2, "fire": 2}


@dataclass(frozen=True, kw_only=True)
class LegacyReport:
    """What was imported; importing again changes nothing and reports the same.

    Attributes:
        source: where from, without password.
        runs, hyperparameters, episodes, metrics: rows read of each.
        missing_tables: tables that the source does not have.
        orphans: experiments that had rows but no row of their own; each became a run.
    """

    source: str
    runs: int
    hyperparameters: int
    episodes: int
    metrics: int
    missing_tables: tuple[str, ...]
    orphans: int

    def text(self) -> str:
        """One line for a terminal."""
        missing = f"; no table {', '.join(self.missing_tables)}" if self.missing_tables else ""
        orphans = f", {self.orphans} of them known only by their rows" if self.orphans else ""
        return (
            f"{self.source}: {self.runs} runs{orphans}, {self.hyperparameters} hyperparameters, "
            f"{self.episodes} episodes, {self.metrics} metric rows{missing}"
        )


def import_legacy(
    source_url: str, store: ExperimentStore, *, label: str | None = None, task: str = "1-1"
) -> LegacyReport:
    """Read the older project's tables into the store; the source is only read.

    Args:
        source_url: database URL of the older project.
        store: where to.
        label: part of the imported runs' ids, ``legacy-<label>-<experiment id>``; the source
            database's name if None.
        task: task of runs that name no level.

    Raises:
        StoreError: if a database does not answer, or the source has none of the tables.
    """
    parsed = parse_url(source_url)
    path = sqlite_path(parsed)
    if path is not None and not path.is_file():
        raise StoreError(
            f"there is no database at {redact(parsed)}; expected the older project's; check its URL"
        )
    label = label or (parsed.database or "db").rpartition("/")[2].partition(".")[0]
    engine = sa.create_engine(parsed)
    try:
        with translated(parsed), engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.execution_options(
                    isolation_level="REPEATABLE READ", postgresql_readonly=True
                )
            return _Import(connection, store, label, task, redact(parsed)).run()
    finally:
        engine.dispose()


class _Import:
    """One import: the source's tables as they are, and where their values go."""

    def __init__(
        self, source: sa.Connection, store: ExperimentStore, label: str, task: str, where: str
    ) -> None:
        self._source = source
        self._store = store
        self._label = label
        self._task = task
        self._where = where
        present = set(sa.inspect(source).get_table_names())
        wanted = ("experiments", "hyperparameters", "episodes", "training_metrics")
        self._missing = tuple(name for name in wanted if name not in present)
        if "experiments" in self._missing and "episodes" in self._missing:
            raise StoreError(
                f"{where} has neither a table experiments nor episodes (it has "
                f"{', '.join(sorted(present)[:10]) or 'none'}); expected the older project's "
                "database; check its URL"
            )
        metadata = sa.MetaData()
        self._tables = {
            name: sa.Table(name, metadata, autoload_with=source, resolve_fks=False)
            for name in wanted
            if name in present
        }

    def run(self) -> LegacyReport:
        """Import everything, parents first."""
        experiments = {
            str(_take(row, EXPERIMENT_NAMES, "id")): row for row in self._rows("experiments")
        }
        referred: set[str] = set()
        for name, names in (
            ("hyperparameters", HYPERPARAMETER_NAMES),
            ("episodes", EPISODE_NAMES),
            ("training_metrics", METRIC_NAMES),
        ):
            referred |= self._references(name, names)
        orphans = sorted(referred - set(experiments))
        parameters = self._hyperparameters()
        with writing(self._store.engine) as connection:
            for identity in [*experiments, *orphans]:
                self._write_run(
                    connection, identity, experiments.get(identity, {}), parameters[identity]
                )
        return LegacyReport(
            source=self._where,
            runs=len(experiments) + len(orphans),
            hyperparameters=sum(len(values) for values in parameters.values()),
            episodes=self._write_episodes(),
            metrics=self._write_metrics(),
            missing_tables=self._missing,
            orphans=len(orphans),
        )

    def _rows(self, name: str, order: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        table = self._tables.get(name)
        if table is None:
            return
        columns = [table.c[column] for column in order if column in table.c]
        statement = sa.select(table).order_by(*columns) if columns else sa.select(table)
        for row in self._source.execution_options(yield_per=_ROWS_A_BATCH).execute(statement):
            yield dict(row._mapping)

    def _references(self, name: str, names: Mapping[str, tuple[str, ...]]) -> set[str]:
        table = self._tables.get(name)
        column = None if table is None else _column(table.c.keys(), names, "experiment_id")
        if table is None or column is None:
            return {"None"} if table is not None and self._count(table) else set()
        rows = self._source.execute(sa.select(table.c[column]).distinct())
        return {str(row[0]) for row in rows}

    def _count(self, table: sa.Table) -> int:
        count = self._source.execute(sa.select(sa.func.count()).select_from(table))
        return int(count.scalar_one())

    def _run_id(self, identity: str) -> str:
        return f"legacy-{self._label}-{identity}"[:64]

    def _hyperparameters(self) -> defaultdict[str, dict[str, str]]:
        """By experiment: from rows of name and value, or from one wide row for each."""
        found: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for row in self._rows("hyperparameters"):
            identity = str(_take(row, HYPERPARAMETER_NAMES, "experiment_id"))
            name = _take(row, HYPERPARAMETER_NAMES, "name")
            if name is not None:
                found[identity][str(name)] = str(_take(row, HYPERPARAMETER_NAMES, "value"))
            else:
                skip = {"id", *HYPERPARAMETER_NAMES["experiment_id"]}
                found[identity].update(
                    {key: str(value) for key, value in row.items() if key not in skip}
                )
        return found

    def _write_run(
        self,
        connection: sa.Connection,
        identity: str,
        row: Mapping[str, Any],
        parameters: Mapping[str, str],
    ) -> None:
        started = _moment(_take(row, EXPERIMENT_NAMES, "started_at")) or datetime.fromtimestamp(
            0, UTC
        )
        ended = _moment(_take(row, EXPERIMENT_NAMES, "ended_at"))
        told = str(_take(row, EXPERIMENT_NAMES, "status") or "").lower()
        config = _as_mapping(_take(row, EXPERIMENT_NAMES, "config"))
        run_id = self._run_id(identity)
        connection.execute(
            insert_into(connection, models.Run)
            .values(
                id=run_id,
                name=str(_take(row, EXPERIMENT_NAMES, "name") or f"experiment {identity}")[:256],
                task=str(_take(row, EXPERIMENT_NAMES, "level") or self._task)[:128],
                algorithm=str(_take(row, EXPERIMENT_NAMES, "algorithm") or "unknown").lower()[:64],
                config=encode_json(_plain(config)),
                config_hash="imported",
                git_commit=_text(_take(row, EXPERIMENT_NAMES, "git_commit"), 64),
                library_versions={},
                hardware={},
                status=_STATUSES.get(told, "finished" if ended and not told else "interrupted"),
                status_reason=f"imported; its status was {told or 'not recorded'}",
                imported=True,
                extra=encode_json(_plain({"legacy_id": identity, **row})),
                started_at=started,
                ended_at=ended or started,
            )
            .on_conflict_do_nothing()
        )
        values = {**flatten(_plain(config)), **parameters}
        if values:
            connection.execute(
                insert_into(connection, models.Hyperparameter).on_conflict_do_nothing(),
                [
                    {"run_id": run_id, "name": name[:256], "value": value}
                    for name, value in values.items()
                ],
            )

    def _write_episodes(self) -> int:
        """Number each environment's episodes in the order of the source, from zero."""
        following: defaultdict[tuple[str, int], int] = defaultdict(int)
        count = 0
        batch: list[dict[str, Any]] = []
        table = self._tables.get("episodes")
        names = [] if table is None else list(table.c.keys())
        order = [
            column
            for column in (
                _column(names, EPISODE_NAMES, "experiment_id"),
                _column(names, EPISODE_NAMES, "number"),
                "id" if "id" in names else None,
            )
            if column is not None
        ]
        for row in self._rows("episodes", order):
            run_id = self._run_id(str(_take(row, EPISODE_NAMES, "experiment_id")))
            env_index = max(_integer(_take(row, EPISODE_NAMES, "env_index")) or 0, 0)
            index = following[run_id, env_index]
            following[run_id, env_index] += 1
            batch.append(_episode(row, run_id, env_index, index))
            count += 1
            if len(batch) >= _ROWS_A_BATCH:
                self._flush(models.Episode, batch)
        self._flush(models.Episode, batch)
        return count

    def _write_metrics(self) -> int:
        """One sample for each row, or for each step where the source has a row for each metric."""
        samples: dict[tuple[str, Any], dict[str, Any]] = {}
        following: defaultdict[str, int] = defaultdict(int)
        count = 0
        for row in self._rows("training_metrics", ("id",)):
            count += 1
            run_id = self._run_id(str(_take(row, METRIC_NAMES, "experiment_id")))
            steps = _integer(_take(row, METRIC_NAMES, "total_steps"), 2**63) or 0
            name = _take(row, METRIC_NAMES, "name")
            key = (run_id, steps if name is not None else count + 0.5)
            if key not in samples:
                samples[key] = {
                    "run_id": run_id,
                    "update_index": following[run_id],
                    "attempt": 1,
                    "total_steps": steps,
                    "state": "warming",  # nobody judged it
                    "signals": {},
                    "at": _moment(_take(row, METRIC_NAMES, "at")) or datetime.fromtimestamp(0, UTC),
                }
                following[run_id] += 1
            signals = samples[key]["signals"]
            if name is not None:
                signals[str(name)] = _plain(_take(row, METRIC_NAMES, "value"))
            else:
                skip = {"id", *METRIC_NAMES["experiment_id"], *METRIC_NAMES["at"]}
                signals.update({k: _plain(v) for k, v in row.items() if k not in skip})
        values = [
            {**sample, "signals": encode_json(sample["signals"])} for sample in samples.values()
        ]
        for start in range(0, len(values), _ROWS_A_BATCH):
            self._flush(models.HealthSample, values[start : start + _ROWS_A_BATCH])
        return count

    def _flush(self, table: type[models.Base], batch: list[dict[str, Any]]) -> None:
        if batch:
            with writing(self._store.engine) as connection:
                upsert(connection, table, batch)
        batch.clear()


def _episode(row: Mapping[str, Any], run_id: str, env_index: int, index: int) -> dict[str, Any]:
    def integer(name: str, limit: int = 2**31) -> int | None:
        return _integer(_take(row, EPISODE_NAMES, name), limit)

    flag = _take(row, EPISODE_NAMES, "flag")
    world, stage = integer("world"), integer("stage")
    level = _take(row, EPISODE_NAMES, "level")
    if level is None and world is not None and stage is not None:
        level = f"{world}-{stage}"
    status = _take(row, EPISODE_NAMES, "status")
    seed = integer("seed", 2**64)
    return {
        "run_id": run_id,
        "env_index": env_index,
        "episode_index": index,
        "attempt": 1,
        "imported": True,
        "seed": seed if seed is not None and 0 <= seed < 2**64 else None,
        "level": _text(level, 8),
        "total_steps": max(integer("total_steps", 2**63) or 0, 0),
        "length_steps": max(integer("length_steps", 2**63) or 0, 0),
        "shaped_return": _number(_take(row, EPISODE_NAMES, "shaped_return")),
        "furthest_x_px": integer("furthest_x_px"),
        "end_reason": _text(_take(row, EPISODE_NAMES, "end_reason"), 32)
        or ("flag" if flag else "unknown"),
        "x_px": integer("x_px"),
        "y_px": integer("y_px"),
        "score": integer("score"),
        "coins": integer("coins"),
        "time_left": integer("time_left"),
        "life": integer("life"),
        "status": _MARIO_STATUS.get(str(status).lower(), _integer(status)),
        "world": world,
        "stage": stage,
        "area": integer("area"),
        "flag": None if flag is None else bool(flag),
        "dying": None,
        "player_state": None,
        "ended_at": _moment(_take(row, EPISODE_NAMES, "ended_at"))
        or datetime.fromtimestamp(0, UTC),
        "extra": encode_json(_plain(row)),
    }


def _column(
    columns: Sequence[str] | Any, names: Mapping[str, tuple[str, ...]], wanted: str
) -> str | None:
    present = set(columns)
    return next((name for name in names[wanted] if name in present), None)


def _take(row: Mapping[str, Any], names: Mapping[str, tuple[str, ...]], wanted: str) -> Any:
    column = _column(row.keys(), names, wanted)
    return None if column is None else row[column]


def _as_mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {"text": value}
    if isinstance(value, Mapping):
        return dict(value)
    return {} if value is None else {"value": value}


def _plain(value: Any) -> Any:
    """JSON types of whatever a database returns."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def _text(value: Any, length: int) -> str | None:
    return None if value is None else str(value)[:length]


def _number(value: Any) -> float:
    """A finite float of whatever was stored, 0 for what is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def _integer(value: Any, limit: int = 2**31) -> int | None:
    """An integer of whatever was stored; None for what is none or not within ±limit."""
    try:
        number = value if isinstance(value, int) else int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None
    return number if -limit < number < limit else None


def _moment(value: Any) -> datetime | None:
    """A moment of a timestamp, a text or Unix seconds; without a zone it is taken as UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, int | float | Decimal):
        try:
            return datetime.fromtimestamp(float(value), UTC)
        except (OverflowError, OSError, ValueError):
            return None
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value
    return None
