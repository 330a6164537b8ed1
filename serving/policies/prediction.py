"""What the engine takes and gives: observations, and the actions that one version chose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mario.config.evaluation import ActionSelection
from mario.game.console.contract import UInt8Array
from mario.game.smb.actions import Action
from mario.policy.manifest import Float32Array
from serving.policies.version_follower import LoadedVersion


@dataclass(frozen=True, slots=True)
class PredictionInput:
    """The observations of one request.

    Attributes:
        observations: uint8 (N, 4, 84, 84), N ≥ 1.
        mode: greedy or sample; None uses the policy's own.
        seed: seed for sampling; None draws one.
    """

    observations: UInt8Array
    mode: ActionSelection | None
    seed: int | None


@dataclass(frozen=True, slots=True)
class PredictionOutput:
    """The actions for one request.

    Attributes:
        version: the version that answered all observations.
        actions: int64 (N,).
        probabilities: float32 (N, A).
        values: float32 (N,).
        mode: how the actions were chosen.
    """

    version: LoadedVersion
    actions: npt.NDArray[np.int64]
    probabilities: Float32Array
    values: Float32Array
    mode: ActionSelection

    @property
    def chosen(self) -> list[Action]:
        """The actions with their names and buttons."""
        available = self.version.policy.actions
        return [available[action] for action in self.actions.tolist()]
