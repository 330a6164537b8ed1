"""Import the runs of the older project, for `mario store import-legacy`.

The older project stores ``experiments``, ``hyperparameters``, ``episodes`` and ``training_metrics``
in PostgreSQL. Its columns changed over time, so each value is looked up under several names (see
`values`); columns that no name matches are kept as JSON in the row. A repeated import adds new rows
only: a row is identified by the source's primary key, or by its content if there is none.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from mario.config.run_states import RunStatus
from mario.errors import StoreError
from mario.store import tables
from mario.store.batch_insert import insert_into, upsert
from mario.store.engine import encode_json, parse_url, redact, sqlite_path, translated, writing
from mario.store.legacy.metrics import MetricSamples
from mario.store.legacy.values import (
    EPISODE_NAMES,
    EXPERIMENT_NAMES,
    HYPERPARAMETER_NAMES,
    MARIO_STATUS,
    METRIC_NAMES,
    STATUSES,
    as_mapping,
    column_of,
    flag_of,
    integer_of,
    moment_of,
    number_of,
    plain,
    take,
    text_of,
)
from mario.store.runs import flatten
from mario.store.store import ExperimentStore

_ROWS_A_BATCH = 5_000
#: Length of the column `runs.id`.
_RUN_ID_LENGTH = 64


@dataclass(frozen=True, kw_only=True)
class LegacyReport:
    """The number of rows read; it is the same when an unchanged source is imported again.

    Attributes:
        source: URL of the source, without password.
        runs, hyperparameters, episodes, metrics: number of rows read of each kind.
        missing_tables: tables that the source lacks.
        orphans: experiments that other rows refer to, but without a row of their own; each became a
            run.
    """

    source: str
    runs: int
    hyperparameters: int
    episodes: int
    metrics: int
    missing_tables: tuple[str, ...]
    orphans: int

    def text(self) -> str:
        """Return the report as one line."""
        missing = f"; no table {', '.join(self.missing_tables)}" if self.missing_tables else ""
        orphans = f", {self.orphans} of them known only by their rows" if self.orphans else ""
        return (
            f"{self.source}: {self.runs} runs{orphans}, {self.hyperparameters} hyperparameters, "
            f"{self.episodes} episodes, {self.metrics} metric rows{missing}"
        )


def import_legacy(
    source_url: str, store: ExperimentStore, *, label: str | None = None, task: str = "1-1"
) -> LegacyReport:
    """Import the older project's tables into the store; the source is only read.

    Args:
        source_url: database URL of the older project.
        store: the target.
        label: part of the imported runs' ids, ``legacy-<label>-<experiment id>``; the source
            database's name if None.
        task: task of runs without a level.

    Raises:
        StoreError: if a database is unreachable, or the source has none of the tables.
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
    """One import from an open source."""

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
        """Import every table, parents first."""
        experiments = {
            str(take(row, EXPERIMENT_NAMES, "id")): row for row in self._rows("experiments")
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
        column = None if table is None else column_of(table.c.keys(), names, "experiment_id")
        if table is None or column is None:
            return {"None"} if table is not None and self._count(table) else set()
        rows = self._source.execute(sa.select(table.c[column]).distinct())
        return {str(row[0]) for row in rows}

    def _count(self, table: sa.Table) -> int:
        count = self._source.execute(sa.select(sa.func.count()).select_from(table))
        return int(count.scalar_one())

    def _run_id(self, identity: str) -> str:
        whole = f"legacy-{self._label}-{identity}"
        if len(whole) <= _RUN_ID_LENGTH:
            return whole
        # Without the digest, two long names that differ at their ends would become one run.
        digest = hashlib.sha256(whole.encode()).hexdigest()[:16]
        return f"{whole[: _RUN_ID_LENGTH - 17]}-{digest}"

    def _hyperparameters(self) -> defaultdict[str, dict[str, str]]:
        """Read hyperparameters by experiment: from rows of name and value, or from one wide row."""
        found: defaultdict[str, dict[str, str]] = defaultdict(dict)
        columns = (
            self._tables["hyperparameters"].c.keys() if "hyperparameters" in self._tables else ()
        )
        used = {"id", *(column_of(columns, HYPERPARAMETER_NAMES, n) for n in HYPERPARAMETER_NAMES)}

        def add(parameters: dict[str, str], name: str, value: Any) -> None:
            label, number = name, 1
            while parameters.get(label, str(value)) != str(value):
                number += 1
                label = f"{name}#{number}"
            parameters[label] = str(value)

        for row in self._rows("hyperparameters", ("id",)):
            parameters = found[str(take(row, HYPERPARAMETER_NAMES, "experiment_id"))]
            name = take(row, HYPERPARAMETER_NAMES, "name")
            if name is not None:
                add(parameters, str(name), take(row, HYPERPARAMETER_NAMES, "value"))
            for column, value in row.items():
                if name is None and column not in ("id", *HYPERPARAMETER_NAMES["experiment_id"]):
                    add(parameters, column, value)
                elif name is not None and column not in used and value is not None:
                    add(parameters, f"{name}.{column}", value)
        return found

    def _write_run(
        self,
        connection: sa.Connection,
        identity: str,
        row: Mapping[str, Any],
        parameters: Mapping[str, str],
    ) -> None:
        started = moment_of(take(row, EXPERIMENT_NAMES, "started_at")) or datetime.fromtimestamp(
            0, UTC
        )
        ended = moment_of(take(row, EXPERIMENT_NAMES, "ended_at"))
        told = str(take(row, EXPERIMENT_NAMES, "status") or "").lower()
        unrecorded = RunStatus.FINISHED if ended and not told else RunStatus.INTERRUPTED
        config = as_mapping(take(row, EXPERIMENT_NAMES, "config"))
        run_id = self._run_id(identity)
        self._refuse_another(connection, run_id, identity, row, started)
        statement = insert_into(connection, tables.RunRow)
        connection.execute(
            statement
            .values(
                id=run_id,
                name=str(take(row, EXPERIMENT_NAMES, "name") or f"experiment {identity}")[:256],
                task=str(take(row, EXPERIMENT_NAMES, "level") or self._task)[:128],
                algorithm=str(take(row, EXPERIMENT_NAMES, "algorithm") or "unknown").lower()[:64],
                config=encode_json(plain(config)),
                config_hash="imported",
                git_commit=text_of(take(row, EXPERIMENT_NAMES, "git_commit"), 64),
                library_versions={},
                hardware={},
                status=STATUSES.get(told, unrecorded),
                status_reason=f"imported; its status was {told or 'not recorded'}",
                imported=True,
                extra=encode_json(plain({"legacy_id": identity, **row})),
                started_at=started,
                ended_at=ended or started,
            )
            # The experiment may have ended since an earlier import.
            .on_conflict_do_update(
                index_elements=["id"],
                set_={name: statement.excluded[name]
                      for name in ("status", "status_reason", "ended_at", "extra")},
            )
        )  # fmt: skip
        values = {**flatten(plain(config)), **parameters}
        if values:
            connection.execute(
                insert_into(connection, tables.HyperparameterRow).on_conflict_do_nothing(),
                [
                    {"run_id": run_id, "name": name[:256], "value": value}
                    for name, value in values.items()
                ],
            )

    def _refuse_another(
        self,
        connection: sa.Connection,
        run_id: str,
        identity: str,
        row: Mapping[str, Any],
        started: datetime,
    ) -> None:
        """Raise if the run id belongs to another experiment, such as one of another database."""
        there = connection.execute(
            sa.select(tables.RunRow.imported, tables.RunRow.started_at, tables.RunRow.extra)
            .where(tables.RunRow.id == run_id)
        ).one_or_none()  # fmt: skip
        if there is None:
            return
        known = there.extra or {}
        same = there.imported and known.get("legacy_id") == identity
        # An experiment may have gained or lost its own row since the earlier import.
        if same and row and len(known) > 1:
            same = there.started_at == started
        if not same:
            raise StoreError(
                f"{self._where}: experiment {identity} would become run {run_id}, which another "
                f"experiment has already (started {there.started_at:%Y-%m-%d %H:%M}, here "
                f"{started:%Y-%m-%d %H:%M}); expected a label for each database; import it with "
                "--label NAME"
            )

    def _key_of(self, table: sa.Table, row: Mapping[str, Any]) -> str:
        """Return a row's identity: its primary key, or a digest of its content."""
        columns = [column.name for column in table.primary_key.columns]
        if columns:
            return "/".join(str(row.get(column)) for column in columns)
        whole = json.dumps({name: str(row[name]) for name in sorted(row)})
        return hashlib.sha256(whole.encode()).hexdigest()[:32]

    def _known_episodes(
        self, table: sa.Table, run_id: str
    ) -> tuple[Counter[str], defaultdict[int, int]]:
        """Read the keys of a run's stored episodes, and the next index of each environment."""
        keys: Counter[str] = Counter()
        following: defaultdict[int, int] = defaultdict(int)
        episode = tables.EpisodeRow
        statement = sa.select(episode.env_index, episode.episode_index, episode.extra).where(
            episode.run_id == run_id
        )
        with self._store.engine.connect() as connection:
            for env_index, index, extra in connection.execute(statement):
                known = extra or {}
                # Earlier versions of the import stored the row without its key.
                keys[known.get("legacy_key") or self._key_of(table, known)] += 1
                following[env_index] = max(following[env_index], index + 1)
        return keys, following

    def _write_episodes(self) -> int:
        """Write new episodes, numbered for each environment in the order of the source.

        Stored episodes keep their numbers; new ones follow them.
        """
        count = 0
        batch: list[dict[str, Any]] = []
        table = self._tables.get("episodes")
        if table is None:
            return 0
        names = list(table.c.keys())
        order = [
            column
            for column in (
                column_of(names, EPISODE_NAMES, "experiment_id"),
                column_of(names, EPISODE_NAMES, "number"),
                "id" if "id" in names else None,
            )
            if column is not None
        ]
        current: str | None = None
        for row in self._rows("episodes", order):
            run_id = self._run_id(str(take(row, EPISODE_NAMES, "experiment_id")))
            if run_id != current:
                self._flush(tables.EpisodeRow, batch)
                current = run_id
                known, following = self._known_episodes(table, run_id)
            count += 1
            key = self._key_of(table, row)
            if known[key] > 0:
                known[key] -= 1
                continue
            env_index = max(integer_of(take(row, EPISODE_NAMES, "env_index")) or 0, 0)
            batch.append(_episode(row, run_id, env_index, following[env_index], key))
            following[env_index] += 1
            if len(batch) >= _ROWS_A_BATCH:
                self._flush(tables.EpisodeRow, batch)
        self._flush(tables.EpisodeRow, batch)
        return count

    def _write_metrics(self) -> int:
        """Write metric rows as health samples; see `MetricSamples`."""
        table = self._tables.get("training_metrics")
        if table is None:
            return 0
        count = 0
        runs: dict[str, MetricSamples] = {}
        for row in self._rows("training_metrics", ("id",)):
            count += 1
            run_id = self._run_id(str(take(row, METRIC_NAMES, "experiment_id")))
            if run_id not in runs:
                runs[run_id] = MetricSamples(
                    run_id, table.c.keys(), self._store.runs.health_samples(run_id)
                )
            runs[run_id].add(row)
        for samples in runs.values():
            new = samples.new()
            for start in range(0, len(new), _ROWS_A_BATCH):
                self._flush(tables.HealthSampleRow, new[start : start + _ROWS_A_BATCH])
            self._amend(samples)
        return count

    def _amend(self, samples: MetricSamples) -> None:
        """Add the source's new metrics to stored samples."""
        sample = tables.HealthSampleRow
        with writing(self._store.engine) as connection:
            for update_index, signals in samples.amended():
                connection.execute(
                    sa.update(sample)
                    .where(sample.run_id == samples.run_id, sample.update_index == update_index)
                    .values(signals=encode_json(signals))
                )

    def _flush(self, table: type[tables.Base], batch: list[dict[str, Any]]) -> None:
        if batch:
            with writing(self._store.engine) as connection:
                upsert(connection, table, batch)
        batch.clear()


def _episode(
    row: Mapping[str, Any], run_id: str, env_index: int, index: int, key: str
) -> dict[str, Any]:
    def integer(name: str, limit: int = 2**31) -> int | None:
        return integer_of(take(row, EPISODE_NAMES, name), limit)

    flag = flag_of(take(row, EPISODE_NAMES, "flag"))
    world, stage = integer("world"), integer("stage")
    level = take(row, EPISODE_NAMES, "level")
    if level is None and world is not None and stage is not None:
        level = f"{world}-{stage}"
    status = take(row, EPISODE_NAMES, "status")
    seed = integer("seed", 2**64)
    return {
        "run_id": run_id,
        "env_index": env_index,
        "episode_index": index,
        "attempt": 1,
        "imported": True,
        "seed": seed if seed is not None and 0 <= seed < 2**64 else None,
        "level": text_of(level, 8),
        "total_steps": max(integer("total_steps", 2**63) or 0, 0),
        "length_steps": max(integer("length_steps", 2**63) or 0, 0),
        "shaped_return": number_of(take(row, EPISODE_NAMES, "shaped_return")),
        "furthest_x_px": integer("furthest_x_px"),
        "end_reason": text_of(take(row, EPISODE_NAMES, "end_reason"), 32)
        or ("flag" if flag else "unknown"),
        "x_px": integer("x_px"),
        "y_px": integer("y_px"),
        "score": integer("score"),
        "coins": integer("coins"),
        "time_left": integer("time_left"),
        "life": integer("life"),
        "status": MARIO_STATUS.get(str(status).lower(), integer_of(status)),
        "world": world,
        "stage": stage,
        "area": integer("area"),
        "flag": flag,
        "dying": None,
        "player_state": None,
        "ended_at": moment_of(take(row, EPISODE_NAMES, "ended_at"))
        or datetime.fromtimestamp(0, UTC),
        "extra": encode_json(plain({**row, "legacy_key": key})),
    }
