"""What PPO and other actor-critics share: a policy head, a value head, a rollout per boundary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy.typing as npt
import torch

from mario.game.console.contract import UInt8Array
from mario.training.algorithms.contract import Experience, Network
from mario.training.checkpoint import CheckpointContent


class ActorCritic:
    """An on-policy algorithm on :class:`mario.training.networks.MarioActorCriticPolicy`.

    A subclass builds `model`.

    Attributes:
        model: PPO or a model with the same attributes.
    """

    boundary_every_steps: ClassVar[int] = 0
    holds_resume_points: ClassVar[bool] = True
    model: Any

    def before_update(self, remaining: float) -> None:
        """Nothing: stable-baselines3 follows the learning rate."""

    def outputs(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the network: logits and the value head's values."""
        policy = self.model.policy
        features = policy.features_extractor(observations)
        return policy.action_net(features), policy.value_net(features).squeeze(1)

    def network(self) -> Network:
        """Give the layers."""
        policy = self.model.policy
        return Network(policy.features_extractor, policy.action_net, policy.value_net)

    def experience(self) -> Experience | None:
        """Give the rollout that waits for its update."""
        buffer = self.model.rollout_buffer
        if not buffer.full:
            return None
        observations = buffer.observations.reshape(-1, *buffer.obs_shape)
        return Experience(buffer.actions.reshape(-1), observations)

    def random_share(self, actions: int) -> float:
        """No action is random: the policy itself is sampled."""
        return 0.0

    def policy_signals(self, probe: UInt8Array) -> dict[str, Any]:
        """Estimate the entropy of the policy that acted, by the rollout's log-probabilities."""
        mean = self.model.rollout_buffer.log_probs.mean()
        return {"entropy_ratio": float(-mean / math.log(int(self.model.action_space.n)))}

    def update_signals(self, scalars: Mapping[str, Any]) -> dict[str, Any]:
        """Read explained variance and value loss."""
        explained = logged(scalars, "explained_variance")
        return {
            "explained_variance": (
                explained if explained is not None and math.isfinite(explained) else None
            ),
            "value_loss": logged(scalars, "value_loss"),
        }

    def progress_scalars(self) -> dict[str, float]:
        """Nothing beside the update's own."""
        return {}

    def capture(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Nothing: the rollout buffer is empty at a boundary."""
        return {}, {}

    def restore(self, content: CheckpointContent) -> None:
        """Nothing to put back."""


def logged(scalars: Mapping[str, Any], name: str) -> float | None:
    """Read a scalar that stable-baselines3 logged in `train()`; None where it did not."""
    value = scalars.get(f"train/{name}")
    return None if value is None else float(value)
