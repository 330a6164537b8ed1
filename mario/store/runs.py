"""Runs in the store: start, resume, end, and read them with everything they recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from mario.config.experiment import SEED_BOUND
from mario.config.run_states import CheckpointKind, RunStatus
from mario.errors import RunIsBusy, StoreError
from mario.store import tables
from mario.store.batch_insert import insert_into, write_training_rows
from mario.store.engine import encode_json, reading, redact, writing
from mario.store.process_identity import SILENCE_SECONDS, attempt_is_alive, host_name, process_id
from mario.store.records import (
    Attempt,
    AttemptEnd,
    CheckpointEntry,
    EpisodeEntry,
    HealthChangeEntry,
    HealthSampleEntry,
    NewRun,
    Run,
    SelectionEntry,
    TrainingEntry,
    utc_now,
)

_PAGE_ROWS = 5_000


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten a nested configuration to dotted names and text, as MLflow parameters are.

    Example:
        >>> flatten({"ppo": {"gamma": 0.95}, "levels": ["1-1"]})
        {'ppo.gamma': '0.95', 'levels': "['1-1']"}
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = str(value)
    return flat


def refuse_busy(run_id: str, last: Attempt | sa.Row[Any]) -> None:
    """Check that no other process works on a run's last attempt.

    Raises:
        RunIsBusy: if its process is alive on this machine, or has a recent heartbeat on another.
    """
    if last.status != RunStatus.RUNNING or (last.host, last.pid) == (host_name(), process_id()):
        return
    if not attempt_is_alive(last.host, last.pid, last.started_at, last.heartbeat_at):
        return
    if last.host == host_name():
        raise RunIsBusy(
            f"run {run_id} is being trained by process {last.pid} on this machine; expected it "
            "ended; stop that process first, or start a new run"
        )
    silent = max(0.0, (utc_now() - last.heartbeat_at).total_seconds())
    raise RunIsBusy(
        f"run {run_id} is being trained by process {last.pid} on {last.host}, last heartbeat "
        f"{silent:.0f} s ago; expected it ended; stop it there (a killed process counts as gone "
        f"{SILENCE_SECONDS:.0f} s after its last heartbeat), or start a new run"
    )


class Runs:
    """The runs of one database; see ``ExperimentStore.runs``."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def start(self, new: NewRun) -> Run:
        """Store a new run, its hyperparameters and its first attempt (this process).

        Raises:
            StoreUnavailableError: if the database is unreachable.
            StoreConstraintError: if the id is taken or the parent is unknown.
        """
        now = utc_now()
        with writing(self._engine) as connection:
            connection.execute(
                sa.insert(tables.RunRow).values(
                    id=new.id,
                    name=new.name,
                    task=new.task,
                    algorithm=new.algorithm,
                    config=encode_json(dict(new.config)),
                    config_hash=new.config_hash,
                    git_commit=new.git_commit,
                    git_diff=new.git_diff,
                    library_versions=dict(new.library_versions),
                    hardware=encode_json(dict(new.hardware)),
                    status=RunStatus.RUNNING,
                    parent_run_id=new.parent_run_id,
                    mlflow_run_id=new.mlflow_run_id,
                    imported=False,
                    started_at=now,
                )
            )
            parameters = [
                {"run_id": new.id, "name": name, "value": value}
                for name, value in flatten(new.config).items()
            ]
            if parameters:
                connection.execute(sa.insert(tables.HyperparameterRow), parameters)
            self._begin_attempt(connection, new.id, 1, start_steps=0)
        return self.get(new.id)

    def reserve_seed(self, run_id: str, task: str, first: int) -> int:
        """Reserve a seed for a run that has not started; a second call returns the same seed.

        The seed is the smallest one ≥ `first` that no run of the task uses or has reserved. Of two
        concurrent calls the database gives it to one; the other gets the next seed.

        Args:
            run_id: the run; it need not be stored yet.
            task: its task.
            first: the smallest acceptable seed, 0 ≤ first < ``SEED_BOUND``.

        Raises:
            StoreUnavailableError: if the database is unreachable.
            StoreError: if every seed from `first` to ``SEED_BOUND`` is taken.
        """
        table, parameter = tables.SeedReservationRow, tables.HyperparameterRow
        with writing(self._engine) as connection:
            mine = connection.execute(
                sa.select(table.seed).where(table.run_id == run_id)
            ).scalar_one_or_none()
            if mine is not None:
                return int(mine)
            configured = connection.execute(
                sa.select(parameter.value)
                .join(tables.RunRow, tables.RunRow.id == parameter.run_id)
                .where(tables.RunRow.task == task, parameter.name == "seed")
            ).scalars()
            reserved = connection.execute(sa.select(table.seed).where(table.task == task)).scalars()
            taken = {str(seed) for seed in (*configured, *reserved)}
            seed = first
            while 0 <= seed < SEED_BOUND:
                if str(seed) not in taken and self._reserve(connection, run_id, task, seed):
                    return seed
                seed += 1
        raise StoreError(
            f"got no free seed from {first} on for task {task}; expected one of 0 to "
            f"{SEED_BOUND - 1}; set a smaller `seed`"
        )

    @staticmethod
    def _reserve(connection: sa.Connection, run_id: str, task: str, seed: int) -> bool:
        """Reserve one seed; False if another transaction, for which PostgreSQL waits, was first."""
        table = tables.SeedReservationRow
        done = connection.execute(
            insert_into(connection, table)
            .values(run_id=run_id, task=task, seed=seed, at=utc_now())
            .on_conflict_do_nothing(index_elements=[table.task, table.seed])
        )
        return bool(done.rowcount)

    def resume(self, run_id: str, *, start_steps: int) -> Run:
        """Start the next attempt at a run in this process.

        A last attempt that is still ``running`` becomes ``killed``, unless its process is alive
        (see :func:`refuse_busy`).

        Args:
            run_id: the run.
            start_steps: environment steps of the checkpoint that it resumes from.

        Raises:
            StoreError: if the run is unknown or imported.
            RunIsBusy: if its process is alive here, or has a recent heartbeat on another machine.
        """
        with writing(self._engine) as connection:
            run = tables.RunRow
            found = connection.execute(
                sa.select(run.imported).where(run.id == run_id).with_for_update()
            ).one_or_none()
            if found is None:
                raise self._unknown(run_id)
            if found.imported:
                raise StoreError(
                    f"got the imported run {run_id}; expected one of this system: an imported run "
                    "has no checkpoint to resume from"
                )
            attempt = tables.RunAttemptRow
            last = connection.execute(
                sa.select(attempt)
                .where(attempt.run_id == run_id)
                .order_by(attempt.attempt.desc())
                .limit(1)
            ).one()
            if last.status == RunStatus.RUNNING:
                refuse_busy(run_id, last)
                connection.execute(
                    sa.update(attempt)
                    .where(attempt.run_id == run_id, attempt.attempt == last.attempt)
                    .values(status=RunStatus.KILLED, ended_at=last.heartbeat_at)
                )
            connection.execute(
                sa.update(run)
                .where(run.id == run_id)
                .values(status=RunStatus.RUNNING, status_reason=None, ended_at=None)
            )
            self._begin_attempt(connection, run_id, last.attempt + 1, start_steps=start_steps)
        return self.get(run_id)

    @staticmethod
    def _begin_attempt(
        connection: sa.Connection, run_id: str, attempt: int, *, start_steps: int
    ) -> None:
        now = utc_now()
        connection.execute(
            sa.insert(tables.RunAttemptRow).values(
                run_id=run_id,
                attempt=attempt,
                host=host_name(),
                pid=process_id(),
                status=RunStatus.RUNNING,
                start_steps=start_steps,
                started_at=now,
                heartbeat_at=now,
            )
        )

    def set_mlflow_run(self, run_id: str, mlflow_run_id: str) -> None:
        """Store the id of a run's MLflow run.

        Raises:
            StoreError: if the run is unknown.
        """
        with writing(self._engine) as connection:
            done = connection.execute(
                sa.update(tables.RunRow)
                .where(tables.RunRow.id == run_id)
                .values(mlflow_run_id=mlflow_run_id)
            )
            if done.rowcount != 1:
                raise self._unknown(run_id)

    def end(self, end: AttemptEnd) -> None:
        """Store the end of an attempt at once; training uses ``StoreWriter`` instead."""
        self.write([end])

    def write(self, rows: Sequence[TrainingEntry]) -> None:
        """Store entries at once, in one transaction, idempotently.

        Raises:
            StoreUnavailableError: if the database is unreachable.
            StoreConstraintError: if an entry violates a constraint.
        """
        write_training_rows(self._engine, rows)

    def mark_killed(self, run_id: str, reason: str, *, seen: Attempt | None = None) -> bool:
        """Mark a ``running`` run as ``killed`` if its process is gone.

        Args:
            run_id: the run.
            reason: for people.
            seen: its newest attempt as read when the process was found gone. If a newer attempt or
                heartbeat exists, the run stays. None checks only the process.

        Returns:
            Whether it was marked.
        """
        with writing(self._engine) as connection:
            run, attempt = tables.RunRow, tables.RunAttemptRow
            # `resume` takes this lock, too, so nobody resumes the run meanwhile.
            connection.execute(sa.select(run.id).where(run.id == run_id).with_for_update())
            row = connection.execute(
                sa.select(attempt)
                .where(attempt.run_id == run_id)
                .order_by(attempt.attempt.desc())
                .limit(1)
            ).one_or_none()
            if row is None or row.status != RunStatus.RUNNING:
                return False
            if seen is not None and (row.attempt, row.heartbeat_at) != (
                seen.attempt,
                seen.heartbeat_at,
            ):
                return False
            if attempt_is_alive(row.host, row.pid, row.started_at, row.heartbeat_at):
                return False
            marked = connection.execute(
                sa.update(attempt)
                .where(
                    attempt.run_id == run_id,
                    attempt.attempt == row.attempt,
                    attempt.status == RunStatus.RUNNING,
                    attempt.heartbeat_at == row.heartbeat_at,
                )
                .values(status=RunStatus.KILLED, ended_at=row.heartbeat_at)
            )
            if not marked.rowcount:
                return False  # a heartbeat or its end was stored first
            done = connection.execute(
                sa.update(run)
                .where(run.id == run_id, run.status == RunStatus.RUNNING)
                .values(status=RunStatus.KILLED, status_reason=reason, ended_at=row.heartbeat_at)
            )
            return bool(done.rowcount)

    def get(self, run_id: str) -> Run:
        """Read one run.

        Raises:
            StoreError: if it is unknown.
        """
        run = self.find(run_id)
        if run is None:
            raise self._unknown(run_id)
        return run

    def find(self, run_id: str) -> Run | None:
        """Read one run; None if it is unknown."""
        runs = self._select(tables.RunRow.id == run_id, limit=1)
        return runs[0] if runs else None

    def list(
        self, *, task: str | None = None, status: RunStatus | None = None, limit: int = 1_000
    ) -> tuple[Run, ...]:
        """Read runs, newest first."""
        conditions = []
        if task is not None:
            conditions.append(tables.RunRow.task == task)
        if status is not None:
            conditions.append(tables.RunRow.status == status)
        return self._select(*conditions, limit=limit)

    def _select(self, *conditions: sa.ColumnElement[bool], limit: int) -> tuple[Run, ...]:
        attempts: dict[str, list[Attempt]] = {}
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(tables.RunRow)
                .where(*conditions)
                .order_by(tables.RunRow.started_at.desc(), tables.RunRow.id.desc())
                .limit(limit)
            ).all()
            for row in connection.execute(
                sa.select(tables.RunAttemptRow)
                .where(tables.RunAttemptRow.run_id.in_([row.id for row in rows]))
                .order_by(tables.RunAttemptRow.attempt)
            ):
                values = dict(row._mapping)
                attempts.setdefault(values.pop("run_id"), []).append(Attempt(**values))
        return tuple(Run(**row._mapping, attempts=tuple(attempts.get(row.id, ()))) for row in rows)

    def hyperparameters(self, run_id: str) -> dict[str, str]:
        """Read a run's hyperparameters by dotted name."""
        table = tables.HyperparameterRow
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(table.name, table.value).where(table.run_id == run_id)
            )
            return {row.name: row.value for row in rows}

    def count_episodes(self, run_id: str) -> int:
        """Count the stored training episodes of a run."""
        with reading(self._engine) as connection:
            return int(
                connection.execute(
                    sa.select(sa.func.count())
                    .select_from(tables.EpisodeRow)
                    .where(tables.EpisodeRow.run_id == run_id)
                ).scalar_one()
            )

    def episodes(self, run_id: str) -> Iterator[EpisodeEntry]:
        """Read a run's episodes by environment and index, without imported ones."""
        table = tables.EpisodeRow
        names = list(EpisodeEntry.__dataclass_fields__)
        last = (-1, -1)
        while True:
            with reading(self._engine) as connection:
                rows = connection.execute(
                    sa.select(*(getattr(table, name) for name in names))
                    .where(
                        table.run_id == run_id,
                        table.imported.is_(False),
                        sa.tuple_(table.env_index, table.episode_index)
                        > sa.tuple_(*map(sa.literal, last)),
                    )
                    .order_by(table.env_index, table.episode_index)
                    .limit(_PAGE_ROWS)
                ).all()
            for row in rows:
                yield EpisodeEntry(**row._mapping)
            if len(rows) < _PAGE_ROWS:
                return
            last = (rows[-1].env_index, rows[-1].episode_index)

    def health_samples(self, run_id: str) -> tuple[HealthSampleEntry, ...]:
        """Read a run's health samples in the order of updates."""
        rows = self._ordered(tables.HealthSampleRow, run_id, tables.HealthSampleRow.update_index)
        return tuple(HealthSampleEntry(**row._mapping) for row in rows)

    def health_changes(self, run_id: str) -> tuple[HealthChangeEntry, ...]:
        """Read a run's changes of health in the order of updates."""
        rows = self._ordered(tables.HealthChangeRow, run_id, tables.HealthChangeRow.update_index)
        return tuple(
            HealthChangeEntry(**{**row._mapping, "reasons": tuple(row.reasons)}) for row in rows
        )

    def checkpoints(
        self, run_id: str, kind: CheckpointKind | None = None
    ) -> tuple[CheckpointEntry, ...]:
        """Read a run's checkpoints in the order of steps."""
        rows = self._ordered(tables.CheckpointRow, run_id, tables.CheckpointRow.total_steps)
        found = (CheckpointEntry(**row._mapping) for row in rows)
        return tuple(row for row in found if kind is None or row.kind == kind)

    def selections(self, run_id: str) -> tuple[SelectionEntry, ...]:
        """Read a run's evaluations on selection seeds in the order of steps."""
        rows = self._ordered(tables.SelectionRow, run_id, tables.SelectionRow.total_steps)
        return tuple(SelectionEntry(**row._mapping) for row in rows)

    def _ordered(
        self, table: Any, run_id: str, order: sa.ColumnElement[Any] | Any
    ) -> Sequence[sa.Row[Any]]:
        with reading(self._engine) as connection:
            return connection.execute(
                sa.select(table).where(table.run_id == run_id).order_by(order)
            ).all()

    def _unknown(self, run_id: str) -> StoreError:
        return StoreError(
            f"got the run {run_id!r}, which is not in {redact(self._engine.url)}; expected a "
            "stored run; list them with `mario store check`"
        )
