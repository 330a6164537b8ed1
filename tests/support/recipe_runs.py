"""Train a small network in a copy of the tree, and play units with the exported policy."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import yaml

from tests.support.recipes import run

_PLAY = """
import sys
from mario.policy.artefact import load_artefact
from mario.policy.onnx import OnnxPolicy
from tests.support.evaluation_helpers import evaluate_units

policy = OnnxPolicy(load_artefact(sys.argv[1]))
policy.check_golden()
for record in evaluate_units(policy, [("1-1", 1), ("1-1", 2)], policy_digest="recipe"):
    print(record.steps, sum(record.action_counts), len(record.action_counts))
"""


def train_in(tree: Path, **changes: Any) -> Path:
    """Train 512 steps in a copy; `changes` are top-level keys of the experiment.

    Returns:
        The run's folder.
    """
    values: dict[str, Any] = {
        "name": "recipe",
        "total_steps": 512,
        "environments": 4,
        "algorithm": {"name": "ppo", "n_steps": 16, "batch_size": 32, "n_epochs": 1},
        "game": {"max_steps": 12, "no_op_max_frames": 4},
        "network": {"features": "tiny", "threads": 1, "precision": "float32"},
        "checkpoint": {"every_steps": 256, "keep": 1},
        "selection": {"every_steps": 512, "units": 2},
        "collapse": {"action": "warn"},
        "sinks": {"mlflow": False, "prometheus": False},
    }
    config = tree.parent / "recipe.yaml"
    config.write_text(yaml.safe_dump({**values, **changes}))
    run(tree, "-m", "mario.cli", "train", "--config", str(config))
    (policy,) = tree.glob("runs/*/policy")
    return policy.parent


def play_in(tree: Path, run_folder: Path) -> int:
    """Play two units with the run's policy, as an evaluation does; return its number of actions."""
    played = run(tree, "-c", _PLAY, str(run_folder / "policy"))
    rows = [[int(number) for number in line.split()] for line in played.splitlines()]
    assert len(rows) == 2
    assert all(steps == chosen > 0 for steps, chosen, _ in rows)
    return rows[0][2]


def manifest(run_folder: Path) -> dict[str, Any]:
    """Read the run's ``policy.json``."""
    loaded: dict[str, Any] = json.loads((run_folder / "policy" / "policy.json").read_text())
    return loaded


def episodes(tree: Path) -> list[tuple[float, int, str]]:
    """Read the training episodes of the copy: shaped return, steps, end."""
    with sqlite3.connect(tree / "runs" / "mario.db") as store:
        query = "SELECT shaped_return, length_steps, end_reason FROM episodes"
        return list(store.execute(query))
