"""Evaluations and verdicts in the store; an evaluation is resumable unit by unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import sqlalchemy as sa

from mario.errors import StoreError
from mario.evaluation.records import EpisodeRecord
from mario.store import tables
from mario.store.batch_insert import insert_into
from mario.store.engine import encode_json, reading, writing
from mario.store.ledger import lock_model
from mario.store.records import (
    Evaluation,
    EvaluationKey,
    NewVerdict,
    StoredVerdict,
    new_id,
    utc_now,
)
from mario.store.vocabulary import EvaluationStatus

_RECORD_FIELDS = tuple(item.name for item in fields(EpisodeRecord))


class Evaluations:
    """The evaluations and verdicts of one database; see ``ExperimentStore.evaluations``."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def open(
        self,
        key: EvaluationKey,
        *,
        planned_units: int,
        policy_label: str = "",
        run_id: str | None = None,
    ) -> Evaluation:
        """Start an evaluation, or resume the one with this key.

        Args:
            key: its identity.
            planned_units: the maximum number of units; a higher number replaces the stored one.
            policy_label: the policy's name for people, such as ``mario-1-1 v3``.
            run_id: the training run that it belongs to, if any.

        Raises:
            StoreUnavailableError: if the database is unreachable.
            StoreConstraintError: if a value is out of range, or the run unknown.
        """
        table = tables.EvaluationRow
        identity = {
            "policy_digest": key.policy_digest,
            "protocol": key.protocol,
            "seed_family": key.seed_family,
            "seed_source": key.seed_source,
            "level_set": ",".join(key.levels),
        }
        with writing(self._engine) as connection:
            statement = insert_into(connection, table).values(
                id=new_id("eval"),
                **identity,
                policy_label=policy_label,
                planned_units=planned_units,
                status=EvaluationStatus.RUNNING,
                run_id=run_id,
                started_at=utc_now(),
            )
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=list(identity),
                    set_={
                        "planned_units": sa.case(
                            (table.planned_units > planned_units, table.planned_units),
                            else_=planned_units,
                        ),
                        "status": EvaluationStatus.RUNNING,
                        "ended_at": None,
                    },
                )
            )
            found = connection.execute(sa.select(table.id).filter_by(**identity)).scalar_one()
        return self.get(found)

    def add(self, evaluation_id: str, records: Sequence[EpisodeRecord]) -> int:
        """Store finished units in one transaction; existing units stay.

        Args:
            evaluation_id: from ``open``.
            records: episodes of the evaluated policy.

        Returns:
            The number of new units.

        Raises:
            StoreError: if a record belongs to another policy, or differs from the stored record of
                its unit, which the protocol excludes.
            StoreUnavailableError: if the database is unreachable.
        """
        if not records:
            return 0
        evaluation = self.get(evaluation_id)
        self._require_own(evaluation, records)
        table = tables.EvaluationEpisodeRow
        now = utc_now()
        rows = [_row(evaluation_id, record, now) for record in records]
        with writing(self._engine) as connection:
            known = {
                (row.level, row.seed): row.trajectory_hash
                for row in connection.execute(
                    sa.select(table.level, table.seed, table.trajectory_hash).where(
                        table.evaluation_id == evaluation_id,
                        table.seed.in_([record.seed for record in records]),
                    )
                )
            }
            for record in records:
                stored = known.get(record.unit, record.trajectory_hash)
                if stored != record.trajectory_hash:
                    raise StoreError(
                        f"unit {record.unit} of evaluation {evaluation_id} has another result "
                        f"(trajectory {record.trajectory_hash[:12]}, stored {stored[:12]}); "
                        "expected the same episode for the same policy and unit; evaluate with the "
                        "versions of the first evaluation, or delete nothing and report it"
                    )
            new = [row for row in rows if (row["level"], row["seed"]) not in known]
            if new:
                connection.execute(insert_into(connection, table).on_conflict_do_nothing(), new)
        return len({(row["level"], row["seed"]) for row in new})

    @staticmethod
    def _require_own(evaluation: Evaluation, records: Sequence[EpisodeRecord]) -> None:
        for record in records:
            if record.policy_digest != evaluation.key.policy_digest:
                raise StoreError(
                    f"got an episode of policy {record.policy_digest[:12]} for evaluation "
                    f"{evaluation.id} of {evaluation.key.policy_digest[:12]}; expected its own; "
                    "open one evaluation for each policy"
                )
            if record.level not in evaluation.key.levels:
                raise StoreError(
                    f"got an episode of level {record.level} for evaluation {evaluation.id}; "
                    f"expected one of {', '.join(evaluation.key.levels)}"
                )

    def records(self, evaluation_id: str) -> tuple[EpisodeRecord, ...]:
        """Read the finished units by level and seed; ``episode_score`` is recomputed."""
        table = tables.EvaluationEpisodeRow
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(table, tables.EvaluationRow.policy_digest)
                .join(tables.EvaluationRow, tables.EvaluationRow.id == table.evaluation_id)
                .where(table.evaluation_id == evaluation_id)
                .order_by(table.level, table.seed)
            ).all()
        return tuple(
            EpisodeRecord.from_dict(
                {name: row._mapping[name] for name in (*_RECORD_FIELDS, "episode_score")}
            )
            for row in rows
        )

    def finish(
        self, evaluation_id: str, status: EvaluationStatus = EvaluationStatus.FINISHED
    ) -> Evaluation:
        """End an evaluation; ``open`` with the same key resumes it.

        Raises:
            StoreError: if it is unknown or the status is ``running``.
        """
        if status == EvaluationStatus.RUNNING:
            raise StoreError("got status running; expected finished, interrupted or failed")
        with writing(self._engine) as connection:
            connection.execute(
                sa.update(tables.EvaluationRow)
                .where(tables.EvaluationRow.id == evaluation_id)
                .values(status=status, ended_at=utc_now())
            )
        return self.get(evaluation_id)

    def get(self, evaluation_id: str) -> Evaluation:
        """Read one evaluation.

        Raises:
            StoreError: if it is unknown.
        """
        found = self._select(tables.EvaluationRow.id == evaluation_id)
        if not found:
            raise StoreError(
                f"got the evaluation {evaluation_id!r}; expected a stored one; "
                "start it with `mario evaluate`"
            )
        return found[0]

    def list(self, *, policy_digest: str | None = None) -> tuple[Evaluation, ...]:
        """Read evaluations, newest first."""
        if policy_digest is None:
            return self._select()
        return self._select(tables.EvaluationRow.policy_digest == policy_digest)

    def _select(self, *conditions: sa.ColumnElement[bool]) -> tuple[Evaluation, ...]:
        table, episode = tables.EvaluationRow, tables.EvaluationEpisodeRow
        finished = (
            sa.select(sa.func.count())
            .where(episode.evaluation_id == table.id)
            .scalar_subquery()
            .label("finished_units")
        )
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(table, finished)
                .where(*conditions)
                .order_by(table.started_at.desc(), table.id.desc())
            ).all()
        return tuple(
            Evaluation(
                id=row.id,
                key=EvaluationKey(
                    policy_digest=row.policy_digest,
                    protocol=row.protocol,
                    seed_family=row.seed_family,
                    seed_source=row.seed_source,
                    levels=tuple(row.level_set.split(",")),
                ),
                policy_label=row.policy_label,
                planned_units=row.planned_units,
                finished_units=row.finished_units,
                status=row.status,
                run_id=row.run_id,
                started_at=row.started_at,
                ended_at=row.ended_at,
            )
            for row in rows
        )

    def record_verdict(self, new: NewVerdict) -> StoredVerdict:
        """Store a verdict.

        Args:
            new: the verdict; the evaluations of both policies must be stored.

        Raises:
            StoreConstraintError: if an evaluation is missing, or of another policy.
            StoreUnavailableError: if the database is unreachable.
        """
        now = utc_now()
        with writing(self._engine) as connection:
            lock_model(connection, new.model)
            values = {item.name: getattr(new, item.name) for item in fields(NewVerdict)}
            values["detail"] = encode_json(dict(new.detail))
            connection.execute(sa.insert(tables.VerdictRow).values(**values, created_at=now))
        return self.verdict(new.id)

    def verdict(self, verdict_id: str) -> StoredVerdict:
        """Read one verdict.

        Raises:
            StoreError: if it is unknown.
        """
        found = self._verdicts(tables.VerdictRow.id == verdict_id)
        if not found:
            raise StoreError(
                f"got the verdict {verdict_id!r}; expected a stored one; make it with `mario gate`"
            )
        return found[0]

    def test_key(self, verdict: StoredVerdict) -> str:
        """Return the key that the confirmation seeds of a verdict's test were derived from.

        Raises:
            StoreError: if the challenger's evaluation is unknown.
        """
        return self.get(verdict.challenger_evaluation_id).key.seed_source

    def verdicts(self, model: str) -> tuple[StoredVerdict, ...]:
        """Read a model's verdicts, oldest first."""
        return self._verdicts(tables.VerdictRow.model == model)

    def _verdicts(self, condition: sa.ColumnElement[bool]) -> tuple[StoredVerdict, ...]:
        table = tables.VerdictRow
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(table).where(condition).order_by(table.created_at, table.id)
            ).all()
        return tuple(StoredVerdict(**row._mapping) for row in rows)


def _row(evaluation_id: str, record: EpisodeRecord, now: Any) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in _RECORD_FIELDS if name != "policy_digest"}
    values["action_counts"] = list(record.action_counts)
    return {
        "evaluation_id": evaluation_id,
        **values,
        "episode_score": record.episode_score,
        "recorded_at": now,
    }
