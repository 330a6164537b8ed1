"""Builds the algorithm that an experiment names."""

from __future__ import annotations

import warnings
from typing import Any

from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from mario.config.experiment import ExperimentConfig
from mario.config.parts import load_part
from mario.training.algorithms.contract import Algorithm
from mario.training.networks import choose_device, policy_kwargs
from mario.training.schedules import schedule


def build_algorithm(config: ExperimentConfig, env: VecEnv) -> Algorithm:
    """Build the algorithm with fresh weights, seeded by the experiment.

    Args:
        config: the experiment.
        env: its games.

    Raises:
        ConfigError: the configuration lists an algorithm that has no implementation.
    """
    settings = config.algorithm
    kind: type[Algorithm] = load_part("mario.training.algorithms", settings.name, "ALGORITHM")
    device = choose_device(config.network.device)
    common: dict[str, Any] = {
        "learning_rate": schedule(settings.learning_rate, settings.learning_rate_schedule),
        "gamma": settings.gamma,
        "max_grad_norm": settings.max_grad_norm,
        "policy_kwargs": policy_kwargs(config.network, device),
        "seed": config.seed,
        "device": device,
    }
    with warnings.catch_warnings():
        # The configuration has checked what stable-baselines3 warns of (batch sizes, memory).
        warnings.simplefilter("ignore", UserWarning)
        algorithm = kind(settings, env, common)
    algorithm.model.set_logger(Logger(folder=None, output_formats=[]))
    return algorithm
