"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy.typing as npt
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from mario.config.algorithms import PPOConfig
from mario.game.console.contract import UInt8Array
from mario.training.algorithms.contract import Algorithm, Experience, Network
from mario.training.checkpoint import CheckpointContent
from mario.training.networks import MarioActorCriticPolicy
from mario.training.schedules import schedule


class PPOAlgorithm:
    """PPO: a boundary before each rollout, whose buffer is empty then and in no checkpoint."""

    boundary_every_steps: ClassVar[int] = 0
    holds_resume_points: ClassVar[bool] = True

    def __init__(self, settings: PPOConfig, env: VecEnv, common: Mapping[str, Any]) -> None:
        """Build the model."""
        self._entropy = schedule(settings.entropy_coefficient, settings.entropy_schedule)
        self.model = PPO(
            MarioActorCriticPolicy,
            env,
            n_steps=settings.n_steps,
            n_epochs=settings.n_epochs,
            batch_size=settings.batch_size,
            gae_lambda=settings.gae_lambda,
            clip_range=schedule(settings.clip_range, settings.clip_range_schedule),
            normalize_advantage=settings.normalize_advantage,
            ent_coef=settings.entropy_coefficient,
            vf_coef=settings.value_coefficient,
            target_kl=settings.target_kl,
            **common,
        )

    def before_update(self, remaining: float) -> None:
        """Follow the entropy schedule."""
        self.model.ent_coef = self._entropy(remaining)

    def outputs(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the network: logits and the value head's values."""
        network = self.network()
        assert network.value_head is not None
        features = network.extractor(observations)
        return network.action_head(features), network.value_head(features).squeeze(1)

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
        return {"entropy_ratio": float(-mean / math.log(int(self.model.action_space.n)))}  # type: ignore[attr-defined]

    def update_signals(self, scalars: Mapping[str, Any]) -> dict[str, Any]:
        """Read KL divergence, clip fraction, explained variance and value loss.

        stable-baselines3 measures the first two before each minibatch's step: of a single
        minibatch they are 0 whatever the step does, so they are left out then.
        """

        def scalar(name: str) -> float | None:
            value = scalars.get(f"train/{name}")
            return None if value is None else float(value)

        model, explained = self.model, scalar("explained_variance")
        rollout = model.n_steps * model.n_envs
        single = model.n_epochs * math.ceil(rollout / model.batch_size) == 1
        return {
            "approx_kl": None if single else scalar("approx_kl"),
            "clip_fraction": None if single else scalar("clip_fraction"),
            "explained_variance": (
                explained if explained is not None and math.isfinite(explained) else None
            ),
            "value_loss": scalar("value_loss"),
        }

    def progress_scalars(self) -> dict[str, float]:
        """Nothing beside the update's own."""
        return {}

    def capture(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Nothing: the rollout buffer is empty at a boundary."""
        return {}, {}

    def restore(self, content: CheckpointContent) -> None:
        """Nothing to put back."""


ALGORITHM: type[Algorithm] = PPOAlgorithm
