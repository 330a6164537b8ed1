"""The contract of a kind of observation: what a policy sees, and how it is computed.

A kind is the module of its configured name in this package, which names it `OBSERVATION`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mario.game.console.contract import UInt8Array

#: uint8 or float32, as the kind says.
Observations = npt.NDArray[Any]


@dataclass(frozen=True)
class ObservationKind:
    """A kind of observation.

    Attributes:
        name: its name in the configuration.
        version: version of its definition; every policy names the one that it was trained on.
        shape: shape of one observation.
        dtype: ``"uint8"``, which networks divide by 255, or ``"float32"``.
        observe: computes N observations from the pixels, uint8 (N, 4, 84, 84), and the memory,
            uint8 (N, 2048), of N games; None: the pixels are the observations.
    """

    name: str
    version: str
    shape: tuple[int, ...]
    dtype: Literal["uint8", "float32"]
    observe: Callable[[UInt8Array, UInt8Array], Observations] | None = None

    def zeros(self, count: int) -> Observations:
        """Make a buffer for `count` observations."""
        return np.zeros((count, *self.shape), self.dtype)

    def fits(self, observations: Observations) -> bool:
        """Tell whether an array holds observations of this kind, (N, …)."""
        return observations.dtype == self.dtype and observations.shape[1:] == self.shape
