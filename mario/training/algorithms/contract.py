"""The contract of a learning algorithm: what training needs beyond stable-baselines3's interface.

An algorithm is the module of its configured name in this package. It defines a class that follows
:class:`Algorithm`, and names it `ALGORITHM`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy.typing as npt
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from mario.game.console.contract import UInt8Array
from mario.training.checkpoint import CheckpointContent


@dataclass(frozen=True)
class Network:
    """The layers of a policy, for the export and for the health of its units.

    Attributes:
        extractor: convolutions and one dense layer, (N, *shape) of the task's kind of
            observation → float32 (N, width).
        action_head: one linear layer, features → logits float32 (N, A).
        value_head: one linear layer, features → value float32 (N, 1); None where the value is the
            largest logit.
    """

    extractor: nn.Module
    action_head: nn.Module
    value_head: nn.Module | None = None


@dataclass(frozen=True)
class Experience:
    """What the policy did lately.

    Attributes:
        actions: int (M,), M ≥ 1.
        observations: (K, *shape) of the task's kind of observation, K ≥ 1.
    """

    actions: npt.NDArray[Any]
    observations: UInt8Array


class Algorithm(Protocol):
    """A model of stable-baselines3, with all that differs from one algorithm to another.

    Attributes:
        boundary_every_steps: agent steps between two boundaries; 0: a boundary before each rollout.
            More than 0 where a rollout lasts a few steps only.
        holds_resume_points: whether each boundary leaves a copy of the run in memory, so that a
            stop ends the run at once. False where the copy is large: then it is made only to be
            written, and a stop ends the run after the rollout.
    """

    boundary_every_steps: ClassVar[int]
    holds_resume_points: ClassVar[bool]

    def __init__(self, settings: Any, env: VecEnv, common: Mapping[str, Any]) -> None:
        """Build the model.

        Args:
            settings: the `algorithm` section of the configuration.
            env: the games.
            common: arguments that every model takes (learning rate, discount, policy, seed, …).
        """
        ...

    @property
    def model(self) -> BaseAlgorithm:
        """The model; the training loop calls its `learn`."""
        ...

    def before_update(self, remaining: float) -> None:
        """Follow the schedules that stable-baselines3 does not know, after each rollout.

        Args:
            remaining: share of the run that remains, 1 … 0.
        """
        ...

    def outputs(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the network: (N, *shape) of the task's kind → logits (N, A), values (N,)."""
        ...

    def network(self) -> Network:
        """Give the layers of the policy."""
        ...

    def experience(self) -> Experience | None:
        """Give the last actions and observations; None before there are any."""
        ...

    def random_share(self, actions: int) -> float:
        """Mean chance of a random action, 0 … 1, while the last `actions` were taken."""
        ...

    def policy_signals(self, probe: UInt8Array) -> dict[str, Any]:
        """Measure the policy for the collapse detector.

        Args:
            probe: some of the last observations, (K, *shape) of the task's kind.

        Returns:
            Fields of :class:`mario.training.collapse_detector.HealthSample`.
        """
        ...

    def update_signals(self, scalars: Mapping[str, Any]) -> dict[str, Any]:
        """Read the losses of the last update, for the collapse detector.

        Args:
            scalars: what stable-baselines3 logged in `train()`.

        Returns:
            Fields of :class:`mario.training.collapse_detector.HealthSample`.
        """
        ...

    def progress_scalars(self) -> dict[str, float]:
        """Give the scalars that are reported at a boundary beside those of the update."""
        ...

    def capture(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Copy what a checkpoint needs beyond network, optimizer and generators.

        Returns:
            JSON values and arrays, each by a name of its own in the checkpoint.
        """
        ...

    def restore(self, content: CheckpointContent) -> None:
        """Put back what :meth:`capture` copied."""
        ...
