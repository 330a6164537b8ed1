"""The contract of an evaluation engine, which plays units here or on other machines.

An episode depends on (protocol, level, seed) and the policy only, so engines differ in speed and
not in records. An engine only plays; its caller stores the records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from mario.config.evaluation import EvaluationConfig
from mario.config.game import ConsoleName
from mario.evaluation.records import EpisodeRecord
from mario.jobs.policies import LoadedPolicy


class EvaluationEngine(Protocol):
    """Plays units and yields the record of each once, in the order in which they end."""

    def at_once(self, environments: int) -> int:
        """The number of units that keep it busy if one process plays `environments` at a time."""
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
            loaded: the policy that plays.
            units: (level, seed) each, every unit once.
            environments: units that one process plays at a time, ≥ 1.
            console: the console.

        Raises:
            EvaluationError: a unit is impossible, or the engine cannot play.
        """
        ...


class OpenEngine(Protocol):
    """``open_engine`` of the module of each engine that `EvaluationConfig.engine` names."""

    def __call__(self, settings: EvaluationConfig) -> AbstractContextManager[EvaluationEngine]:
        """Open the engine; what it starts ends with the block."""
        ...
