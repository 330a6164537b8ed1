"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from mario.config.algorithms import PPOConfig
from mario.training.algorithms.actor_critic import ActorCritic, logged
from mario.training.algorithms.contract import Algorithm
from mario.training.networks import MarioActorCriticPolicy
from mario.training.schedules import schedule


class PPOAlgorithm(ActorCritic):
    """PPO with schedules of learning rate, clip range and entropy."""

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

    def update_signals(self, scalars: Mapping[str, Any]) -> dict[str, Any]:
        """Read KL divergence and clip fraction as well.

        stable-baselines3 measures both before each minibatch's step: of a single minibatch they
        are 0 whatever the step does, so they are left out then.
        """
        signals = super().update_signals(scalars)
        rollout = self.model.n_steps * self.model.n_envs
        if self.model.n_epochs * math.ceil(rollout / self.model.batch_size) > 1:
            signals["approx_kl"] = logged(scalars, "approx_kl")
            signals["clip_fraction"] = logged(scalars, "clip_fraction")
        return signals


ALGORITHM: type[Algorithm] = PPOAlgorithm
