"""Small training runs for tests: tiny network, short episodes, native console."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from mario.config.experiment import ExperimentConfig, parse_config
from mario.training.checkpoint import read_checkpoint
from mario.training.collapse_detector import Health, HealthSample
from mario.training.episodes import TrainingEpisode
from mario.training.sinks import (
    CheckpointWritten,
    Incident,
    Progress,
    RunEnd,
    RunStart,
    SelectionDone,
    TrainingSink,
)

PPO = {"name": "ppo", "n_steps": 16, "batch_size": 32, "n_epochs": 2,
       "learning_rate_schedule": "linear", "clip_range_schedule": "linear",
       "entropy_schedule": "linear"}  # fmt: skip
DQN = {"name": "dqn", "buffer_size": 400, "learning_starts_steps": 100, "batch_size": 16,
       "train_frequency_steps": 8, "target_update_steps": 100}  # fmt: skip
QRDQN = DQN | {"name": "qrdqn", "quantiles": 10}


def small_config(algorithm: dict[str, Any] | None = None, **changes: Any) -> ExperimentConfig:
    """A run of seconds; `changes` are top-level keys."""
    values: dict[str, Any] = {
        "name": "small",
        "total_steps": 640,
        "environments": 4,
        "seed": 3,
        "algorithm": algorithm or PPO,
        "game": {"max_steps": 12, "no_op_max_frames": 4},
        # `auto` is another precision on another machine, and what a seed learns in it another.
        "network": {"features": "tiny", "threads": 1, "precision": "float32"},
        "checkpoint": {"every_steps": 128, "keep": 2},
        "selection": {"every_steps": 256, "units": 4},
        "collapse": {"action": "warn"},
    }
    return parse_config(values | changes, "test")


def weights_digest(checkpoint: Path | None) -> str:
    """SHA-256 over the network's weights and the optimizer's moments."""
    assert checkpoint is not None
    tensors = read_checkpoint(checkpoint).tensors
    digest = hashlib.sha256()
    for name, tensor in tensors["policy"].items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    for state in tensors["optimizer"]["state"].values():
        digest.update(state["exp_avg"].numpy().tobytes())
    return digest.hexdigest()


def training_episode(
    env_index: int, episode_index: int, x_px: int = 40, shaped_return: float = 0.0
) -> TrainingEpisode:
    """An episode of five steps that ends in death."""
    return TrainingEpisode(
        env_index=env_index, episode_index=episode_index, seed=1, level="1-1", total_steps=10,
        length_steps=5, length_frames=20, shaped_return=shaped_return, furthest_x_px=x_px,
        end="death", state={},
    )  # fmt: skip


class Listener(TrainingSink):
    """Records every event."""

    def __init__(self) -> None:
        self.starts: list[RunStart] = []
        self.episodes: list[TrainingEpisode] = []
        self.health: list[tuple[HealthSample, Health]] = []
        self.selections: list[SelectionDone] = []
        self.checkpoints: list[CheckpointWritten] = []
        self.incidents: list[Incident] = []
        self.progress: list[Progress] = []
        self.ends: list[RunEnd] = []

    def on_start(self, start: RunStart) -> None:
        self.starts.append(start)

    def on_episodes(self, episodes: Any) -> None:
        self.episodes += episodes

    def on_health(self, sample: HealthSample, health: Health) -> None:
        self.health.append((sample, health))

    def on_selection(self, selection: SelectionDone) -> None:
        self.selections.append(selection)

    def on_checkpoint(self, checkpoint: CheckpointWritten) -> None:
        self.checkpoints.append(checkpoint)

    def on_incident(self, incident: Incident) -> None:
        self.incidents.append(incident)

    def on_progress(self, progress: Progress) -> None:
        self.progress.append(progress)

    def on_end(self, end: RunEnd) -> None:
        self.ends.append(end)
