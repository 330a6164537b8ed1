"""Where evaluation units are played: in this process, or on a Dask cluster; the records are equal.

A unit's episode depends on (protocol, level, seed) and the policy only, so an engine decides about
speed and nothing else. Whoever asks for records stores them; an engine only plays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from mario.config.evaluation import EvaluationConfig
from mario.config.game import ConsoleName
from mario.evaluation.protocol import play_units
from mario.evaluation.records import EpisodeRecord
from mario.jobs.policies import LoadedPolicy


class EvaluationEngine(Protocol):
    """Plays units and yields each one's record once, in the order in which they end."""

    def at_once(self, environments: int) -> int:
        """How many units keep it busy, where one process plays `environments` at a time."""
        ...

    def play(
        self,
        loaded: LoadedPolicy,
        units: Sequence[tuple[str, int]],
        *,
        environments: int,
        console: ConsoleName,
    ) -> Iterator[EpisodeRecord]:
        """Play units.

        Args:
            loaded: who plays.
            units: (level, seed) each, every unit once.
            environments: units that one process plays at a time, ≥ 1.
            console: which emulator.

        Raises:
            EvaluationError: a unit is impossible, or the engine cannot play.
        """
        ...


@dataclass(frozen=True)
class LocalEngine:
    """Plays in this process, on all its cores."""

    def at_once(self, environments: int) -> int:
        """As many as there are environments."""
        return environments

    def play(
        self,
        loaded: LoadedPolicy,
        units: Sequence[tuple[str, int]],
        *,
        environments: int,
        console: ConsoleName,
    ) -> Iterator[EpisodeRecord]:
        """Play units; see :class:`EvaluationEngine`."""
        return play_units(
            loaded.policy,
            units,
            policy_digest=loaded.digest,
            environments=environments,
            console=console,
        )


LOCAL = LocalEngine()


@contextmanager
def open_engine(settings: EvaluationConfig | None) -> Iterator[EvaluationEngine]:
    """The engine that an experiment asks for; a cluster of its own starts with its first units.

    Args:
        settings: the experiment's section `evaluation`; None = in this process.

    Raises:
        EvaluationError: Dask is not installed.
    """
    if settings is None or settings.engine == "local":
        yield LOCAL
        return
    from mario.jobs.engines.dask import DaskEngine

    engine = DaskEngine(workers=settings.workers, scheduler=settings.scheduler)
    try:
        yield engine
    finally:
        engine.close()
