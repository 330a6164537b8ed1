"""The local engine: plays units in this process, on all its cores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from mario.config.evaluation import EvaluationConfig
from mario.config.game import ConsoleName
from mario.evaluation.protocol import play_units
from mario.evaluation.records import EpisodeRecord
from mario.jobs.policies import LoadedPolicy


@dataclass(frozen=True)
class LocalEngine:
    """Plays units in this process."""

    def at_once(self, environments: int) -> int:
        """As many units as there are environments."""
        return environments

    def play(
        self,
        loaded: LoadedPolicy,
        units: Sequence[tuple[str, int]],
        *,
        environments: int,
        console: ConsoleName,
    ) -> Iterator[EpisodeRecord]:
        """Play units; see `mario.jobs.engines.contract.EvaluationEngine`."""
        return play_units(
            loaded.policy,
            units,
            policy_digest=loaded.digest,
            environments=environments,
            console=console,
        )


LOCAL = LocalEngine()


def open_engine(_settings: EvaluationConfig) -> AbstractContextManager[LocalEngine]:
    """Return the engine; there is nothing to open."""
    return nullcontext(LOCAL)
