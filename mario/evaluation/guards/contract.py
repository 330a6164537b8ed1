"""What a guard is given, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mario.config.gate import GateRule
from mario.evaluation.records import PairedUnit
from mario.evaluation.verdict import GuardResult, LevelResult


class Answers(NamedTuple):
    """Answers of the challenger to the observations recorded at export.

    Attributes:
        onnx: float `(N, A)` logits of the exported network, now.
        torch: float `(N, A)` logits of the trained network, then.
    """

    onnx: NDArray[np.floating]
    torch: NDArray[np.floating]


class CallTimes(NamedTuple):
    """Wall-clock seconds of single calls, float `(n,)` each, of both networks in turns."""

    challenger: NDArray[np.floating]
    champion: NDArray[np.floating]


class Networks(Protocol):
    """Measurements of the challenger's and the champion's network, made when a guard asks."""

    def answers(self) -> Answers | None:
        """Answers to the recorded observations; None where the artefact has recorded none."""
        ...

    def call_times(self) -> CallTimes | None:
        """Times of single calls; None where the champion is no network."""
        ...


@dataclass(frozen=True)
class GuardInput:
    """What a guard judges.

    Attributes:
        pairs: counted pairs; blocks in order of play, each sorted by level.
        rule: gives the guard's limit.
        bound_units: units of the clear-rate bound; 0 where the rule asks for none.
        level_results: one per level, in the task's order.
        networks: None where the challenger is no network.
    """

    pairs: Sequence[PairedUnit]
    rule: GateRule
    bound_units: int
    level_results: tuple[LevelResult, ...]
    networks: Networks | None


class Guard(Protocol):
    """The function `guard` of a guard's module; pure but for the measurements it asks for."""

    def __call__(self, given: GuardInput) -> Sequence[GuardResult]:
        """Judge; no result where the guard does not apply."""
        ...
