"""Shadow and canary numbers in the store: what a challenger did beside the champion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime

import sqlalchemy as sa

from mario.store import models
from mario.store.engine import reading, writing
from mario.store.records import new_id


@dataclass(frozen=True, kw_only=True)
class ServingComparison:
    """One stretch of serving in which two versions stood beside each other.

    Attributes:
        model: ``mario-<task>``.
        champion_version, champion_digest: the version that answered.
        challenger_version, challenger_digest: the one in the shadow or on the canary sessions.
        started_at, ended_at: the stretch.
        shadow_observations: observations both answered.
        agreed_observations: of these, where both would press the same buttons.
        dropped_observations: observations the shadow was too slow for.
        champion_decisions, challenger_decisions: decisions in sessions.
        champion_seconds, challenger_seconds: time of inference calls, in s.
        champion_observations, challenger_observations: observations in those calls.
        id: made new unless given.
    """

    model: str
    champion_version: str
    champion_digest: str
    challenger_version: str
    challenger_digest: str
    started_at: datetime
    ended_at: datetime
    shadow_observations: int = 0
    agreed_observations: int = 0
    dropped_observations: int = 0
    champion_decisions: int = 0
    challenger_decisions: int = 0
    champion_seconds: float = 0.0
    champion_observations: int = 0
    challenger_seconds: float = 0.0
    challenger_observations: int = 0
    id: str = field(default_factory=lambda: new_id("comparison"))


_FIELDS = tuple(item.name for item in fields(ServingComparison))


class ServingComparisons:
    """The comparisons of one database; reached as ``ExperimentStore.serving``."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, comparison: ServingComparison) -> None:
        """Store one stretch.

        Raises:
            StoreUnavailableError: if the database does not answer.
        """
        values: Mapping[str, object] = {name: getattr(comparison, name) for name in _FIELDS}
        with writing(self._engine) as connection:
            connection.execute(sa.insert(models.ServingComparison).values(**values))

    def list(self, model: str, challenger_digest: str) -> tuple[ServingComparison, ...]:
        """Read the stretches of a challenger, oldest first."""
        table = models.ServingComparison
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(*table.__table__.columns)
                .where(table.model == model, table.challenger_digest == challenger_digest)
                .order_by(table.started_at, table.id)
            ).all()
        return tuple(ServingComparison(**row._mapping) for row in rows)
