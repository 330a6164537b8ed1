"""Comparisons of a shadow or canary challenger with the champion, in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import sqlalchemy as sa

from mario.store import tables
from mario.store.engine import reading, writing
from mario.store.records import ServingComparison

_FIELDS = tuple(item.name for item in fields(ServingComparison))


class ServingComparisons:
    """The serving comparisons of one database; see ``ExperimentStore.serving``."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, comparison: ServingComparison) -> None:
        """Store one comparison.

        Raises:
            StoreUnavailableError: if the database is unreachable.
        """
        values: Mapping[str, object] = {name: getattr(comparison, name) for name in _FIELDS}
        with writing(self._engine) as connection:
            connection.execute(sa.insert(tables.ServingComparisonRow).values(**values))

    def list(self, model: str, challenger_digest: str) -> tuple[ServingComparison, ...]:
        """Read the comparisons of a challenger, oldest first."""
        table = tables.ServingComparisonRow
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(table)
                .where(table.model == model, table.challenger_digest == challenger_digest)
                .order_by(table.started_at, table.id)
            ).all()
        return tuple(ServingComparison(**row._mapping) for row in rows)
