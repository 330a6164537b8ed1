"""What DQN and its variants share: random exploration, a replay buffer, Q-values as logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.vec_env import VecEnv

from mario.config.algorithms import ReplayConfig
from mario.game.console.contract import UInt8Array
from mario.training.algorithms.contract import Experience
from mario.training.checkpoint import CheckpointContent
from mario.training.replay_compression import pack, unpack

#: Rows of the replay buffer that count as recent.
_RECENT_ROWS = 512
_COUNTERS = ("_n_calls", "exploration_rate")
_REPLAY_ARRAYS = ("actions", "rewards", "dones")
_REPLAY_PACKED = ("newest", "whole", "where")


class QLearning:
    """An off-policy algorithm whose policy takes the action of the largest Q-value.

    A subclass builds `model` and defines `q_values` and `network`.

    Attributes:
        name: the algorithm's name; its counters stand under it in a checkpoint.
        model: DQN or a model with the same attributes.
    """

    boundary_every_steps: ClassVar[int] = 1_000
    holds_resume_points: ClassVar[bool] = False
    name: ClassVar[str]
    model: Any

    def q_values(self, observations: torch.Tensor) -> torch.Tensor:
        """Run the network: (N, *shape) of the task's kind of observation → Q-values (N, A)."""
        raise NotImplementedError

    @staticmethod
    def replay_arguments(settings: ReplayConfig, env: VecEnv) -> dict[str, Any]:
        """Give the arguments of the replay buffer, the update interval and the exploration."""
        # One call steps all environments: fewer calls between updates, more updates in each.
        calls = max(1, settings.train_frequency_steps // env.num_envs)
        repeats = max(1, round(calls * env.num_envs / settings.train_frequency_steps))
        return {
            "buffer_size": settings.buffer_size,
            "learning_starts": settings.learning_starts_steps,
            "batch_size": settings.batch_size,
            "train_freq": calls,
            "gradient_steps": settings.gradient_steps * repeats,
            # Half the memory: the next observation is the one stored after it.
            "optimize_memory_usage": True,
            "replay_buffer_kwargs": {"handle_timeout_termination": False},
            "target_update_interval": settings.target_update_steps,
            "exploration_initial_eps": settings.exploration_initial,
            "exploration_final_eps": settings.exploration_final,
            "exploration_fraction": settings.exploration_fraction,
        }

    def before_update(self, remaining: float) -> None:
        """Nothing: stable-baselines3 follows every schedule."""

    def outputs(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the network: the logits are the Q-values, the value is the largest of them."""
        logits = self.q_values(observations)
        return logits, logits.max(dim=1).values

    def experience(self) -> Experience | None:
        """Give the last rows of the replay buffer."""
        replay = self.model.replay_buffer
        rows = slice(max(0, replay.pos - _RECENT_ROWS), replay.pos)
        if not replay.pos:
            return None
        observations = replay.observations[rows].reshape(-1, *replay.obs_shape)
        return Experience(replay.actions[rows].reshape(-1), observations)

    def random_share(self, actions: int) -> float:
        """Mean exploration rate while the last `actions` of all environments were taken."""
        model = self.model
        ages = np.arange(model.n_envs, actions + 1, model.n_envs)
        taken_at = np.maximum(model.num_timesteps - ages, 0)
        rates = [
            1.0 if steps < model.learning_starts
            else model.exploration_schedule(1 - steps / model._total_timesteps)
            for steps in taken_at
        ]  # fmt: skip
        return float(np.mean(rates))

    def policy_signals(self, probe: UInt8Array) -> dict[str, Any]:
        """Measure the largest Q-value, and the largest return that the rewards allow."""
        with torch.no_grad():
            q_values = self.q_values(torch.as_tensor(probe, device=self.model.device))
        found = {"q_max": float(q_values.max())}
        replay = self.model.replay_buffer
        largest = float(np.abs(replay.rewards[: replay.size()]).max())
        # Sum of a geometric series of the largest reward seen (never below one reward's size).
        # Before the first reward nothing is known of what is possible.
        if largest > 0:
            found["q_bound"] = largest / max(1 - self.model.gamma, 1e-6)
        return found

    def update_signals(self, scalars: Mapping[str, Any]) -> dict[str, Any]:
        """Read the temporal difference loss."""
        loss = scalars.get("train/loss")
        return {"value_loss": None if loss is None else float(loss)}

    def progress_scalars(self) -> dict[str, float]:
        """Give the exploration rate, also while nothing is learned yet."""
        return {"rollout/exploration_rate": float(self.model.exploration_rate)}

    def capture(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Copy the counters and the replay buffer, its pictures packed."""
        replay = self.model.replay_buffer
        # One row more than filled: with one array for both, it holds the last next observation.
        filled = replay.buffer_size if replay.full else min(replay.pos + 1, replay.buffer_size)
        arrays = {f"replay_{name}": getattr(replay, name)[:filled].copy()
                  for name in _REPLAY_ARRAYS}  # fmt: skip
        for name, packed in pack(replay.observations[:filled]).items():
            arrays[f"replay_{name}"] = packed
        values = {
            self.name: {name: getattr(self.model, name) for name in _COUNTERS},
            "replay": {"position": int(replay.pos), "full": bool(replay.full)},
        }
        return values, arrays

    def restore(self, content: CheckpointContent) -> None:
        """Put the counters and the replay buffer back."""
        for name, value in content.values[self.name].items():
            setattr(self.model, name, value)
        replay = self.model.replay_buffer
        for name in _REPLAY_ARRAYS:
            saved = content.arrays[f"replay_{name}"]
            getattr(replay, name)[: len(saved)] = saved
        newest, whole, where = (content.arrays[f"replay_{name}"] for name in _REPLAY_PACKED)
        unpack(newest, whole, where, replay.observations)
        replay.pos = content.values["replay"]["position"]
        replay.full = content.values["replay"]["full"]
