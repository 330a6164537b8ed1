"""Builds PPO or DQN of stable-baselines3 from an experiment."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from typing import Any

import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from mario.config.algorithms import DQNConfig, PPOConfig
from mario.config.experiment import ExperimentConfig
from mario.training.networks import (
    MarioActorCriticPolicy,
    MarioQPolicy,
    choose_device,
    policy_kwargs,
)
from mario.training.schedules import ScaledSchedule, schedule


def set_threads(config: ExperimentConfig, threads: int = 0) -> int:
    """Say how many threads torch uses; results on CPU can depend on it in the last bit.

    Args:
        config: the experiment; `network.threads` 0 = one for each core this process may use.
        threads: overrides the configuration unless 0 (a resumed run keeps what it began with).

    Returns:
        The number of threads.
    """
    count = threads or config.network.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    _keep_freed_memory()
    return count


def _keep_freed_memory() -> None:
    """Let glibc keep the tens of megabytes that each minibatch frees.

    By default it gives blocks above 32 MiB back to the kernel, which has to zero them page by page
    for the next minibatch: a quarter of the update's time (mallopt(3), M_MMAP_THRESHOLD = −3,
    M_TRIM_THRESHOLD = −1).
    """
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return  # another C library (musl): slower, not wrong
    libc.mallopt(-3, 1 << 30)
    libc.mallopt(-1, 1 << 30)


def build_algorithm(config: ExperimentConfig, env: VecEnv) -> BaseAlgorithm:
    """Build the algorithm with fresh weights, seeded by the experiment.

    Args:
        config: the experiment.
        env: its games.
    """
    device = choose_device(config.network.device)
    algorithm = config.algorithm
    common: dict[str, Any] = {
        "learning_rate": schedule(algorithm.learning_rate, algorithm.learning_rate_schedule),
        "gamma": algorithm.gamma,
        "max_grad_norm": algorithm.max_grad_norm,
        "batch_size": algorithm.batch_size,
        "policy_kwargs": policy_kwargs(config.network, device),
        "seed": config.seed,
        "device": device,
    }
    with warnings.catch_warnings():
        # The configuration has checked what stable-baselines3 warns of (batch sizes, memory).
        warnings.simplefilter("ignore", UserWarning)
        if isinstance(algorithm, PPOConfig):
            model = _build_ppo(algorithm, env, **common)
        else:
            model = _build_dqn(algorithm, env, **common)
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def learning_rate(model: BaseAlgorithm) -> ScaledSchedule:
    """The model's learning rate schedule, whose factor a rollback lowers."""
    rate = model.learning_rate
    assert isinstance(rate, ScaledSchedule)
    return rate


def _build_ppo(ppo: PPOConfig, env: VecEnv, **common: Any) -> BaseAlgorithm:
    return PPO(
        MarioActorCriticPolicy,
        env,
        n_steps=ppo.n_steps,
        n_epochs=ppo.n_epochs,
        gae_lambda=ppo.gae_lambda,
        clip_range=schedule(ppo.clip_range, ppo.clip_range_schedule),
        normalize_advantage=ppo.normalize_advantage,
        ent_coef=ppo.entropy_coefficient,
        vf_coef=ppo.value_coefficient,
        target_kl=ppo.target_kl,
        **common,
    )


def _build_dqn(dqn: DQNConfig, env: VecEnv, **common: Any) -> BaseAlgorithm:
    # One call steps all environments: fewer calls between updates, more updates in each.
    calls = max(1, dqn.train_frequency_steps // env.num_envs)
    repeats = max(1, round(calls * env.num_envs / dqn.train_frequency_steps))
    return DQN(
        MarioQPolicy,
        env,
        buffer_size=dqn.buffer_size,
        learning_starts=dqn.learning_starts_steps,
        train_freq=calls,
        gradient_steps=dqn.gradient_steps * repeats,
        # Half the memory: the next observation is the one stored after it.
        optimize_memory_usage=True,
        replay_buffer_kwargs={"handle_timeout_termination": False},
        target_update_interval=dqn.target_update_steps,
        exploration_initial_eps=dqn.exploration_initial,
        exploration_final_eps=dqn.exploration_final,
        exploration_fraction=dqn.exploration_fraction,
        **common,
    )


def is_ppo(config: ExperimentConfig) -> bool:
    """Tell PPO from DQN."""
    return not isinstance(config.algorithm, DQNConfig)
