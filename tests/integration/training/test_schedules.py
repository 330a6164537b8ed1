"""The learning rate, clip range, entropy and threads that each update of a real run uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mario.training.sinks import Progress
from mario.training.threads import set_threads
from mario.training.trainer import train
from tests.support.training_runs import DQN, PPO, small_config

STEPS, UPDATE_STEPS = 640, 64
RATE, CLIP, ENTROPY = 4e-4, 0.2, 0.02


def updates_of(algorithm: dict[str, Any], folder: Path, **changes: Any) -> list[dict[str, float]]:
    """The settings of each update of a run, read from the model, and the steps before it."""
    model: list[Any] = []
    seen: list[dict[str, float]] = []

    def look(progress: Progress) -> None:
        if "train/learning_rate" not in progress.scalars:
            return
        (algorithm_,) = model
        seen.append(
            {
                "steps": progress.total_steps,
                "rate": algorithm_.policy.optimizer.param_groups[0]["lr"],
                "clip": progress.scalars.get("train/clip_range", 0.0),
                "entropy": getattr(algorithm_, "ent_coef", 0.0),
                "exploration": progress.scalars.get("rollout/exploration_rate", 0.0),
            }
        )

    train(small_config(algorithm, **changes), folder, initial=model.append, progress=look)
    return seen


@pytest.mark.parametrize("kind", ["linear", "constant"])
def test_ppo_updates_follow_their_schedules(kind: str, tmp_path: Path) -> None:
    seen = updates_of(
        PPO
        | {
            "learning_rate": RATE, "learning_rate_schedule": kind,
            "clip_range": CLIP, "clip_range_schedule": kind,
            "entropy_coefficient": ENTROPY, "entropy_schedule": kind,
        },
        tmp_path / "run",
    )  # fmt: skip
    assert [update["steps"] for update in seen] == list(range(64, STEPS + 1, UPDATE_STEPS))
    for update in seen:
        # Of the whole run, by hand: all of it at the start, nothing at the end.
        left = 1 - update["steps"] / STEPS if kind == "linear" else 1.0
        assert update["rate"] == pytest.approx(RATE * left, abs=1e-12)
        assert update["clip"] == pytest.approx(CLIP * left, abs=1e-9)
        assert update["entropy"] == pytest.approx(ENTROPY * left, abs=1e-9)


def test_one_schedule_changes_nothing_else(tmp_path: Path) -> None:
    mixed = {"learning_rate_schedule": "constant", "clip_range_schedule": "linear",
             "entropy_schedule": "constant"}  # fmt: skip
    seen = updates_of(PPO | mixed, tmp_path / "run")
    assert len({update["rate"] for update in seen}) == 1
    assert len({update["entropy"] for update in seen}) == 1
    assert len({update["clip"] for update in seen}) == len(seen)


def test_dqn_follows_its_rate_and_its_exploration(tmp_path: Path) -> None:
    steps = 4_000
    seen = updates_of(
        DQN
        | {
            "learning_rate": RATE, "learning_rate_schedule": "linear",
            "exploration_initial": 0.9, "exploration_final": 0.1, "exploration_fraction": 0.5,
        },
        tmp_path / "run",
        total_steps=steps,
        selection={"units": 0},
    )  # fmt: skip
    assert len(seen) >= 3
    for update in seen:
        done = update["steps"] / steps
        # The network was updated some steps ago at most, and exploration a step ago.
        assert update["rate"] == pytest.approx(RATE * (1 - done), abs=RATE * 20 / steps)
        expected = 0.9 + (0.1 - 0.9) * min(done / 0.5, 1.0)
        assert update["exploration"] == pytest.approx(expected, abs=20 / steps)
    assert seen[-1]["exploration"] == pytest.approx(0.1)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_threads_are_the_machines_unless_set() -> None:
    of_the_machine = small_config(network={"features": "tiny", "threads": 0})
    assert set_threads(of_the_machine) == len(os.sched_getaffinity(0)) == torch.get_num_threads()
    assert set_threads(small_config(network={"features": "tiny", "threads": 1})) == 1
    assert torch.get_num_threads() == 1
    # A resumed run keeps what it began with: sums depend on it in the last bit.
    assert set_threads(of_the_machine, 2) == 2 == torch.get_num_threads()
