"""The code of today resumes a run of commit 1ce122b to the checkpoints that 1ce122b reaches.

Both resume the same golden runs on the same machine, so every number must be equal. Set
`MARIO_OLD_TREE` to a checkout of 1ce122b with its environment in `.venv`:

    git worktree add ../old 1ce122b && make -C ../old setup
    MARIO_OLD_TREE=../old python -m pytest tests/integration/golden/test_resume_equals.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mario.training.checkpoint import list_checkpoints, read_checkpoint
from tests.support.golden import checkpoint_digest, run_id_in, unpack
from tests.support.paths import ROOT

OLD_TREE = os.environ.get("MARIO_OLD_TREE")


def _resume(runs_dir: Path, tree: Path, python: Path) -> dict[str, Any]:
    """Resume the run with a tree's code; digest and plain values of each checkpoint it leaves."""
    run_id = run_id_in(runs_dir)
    elsewhere = ("MARIO_DATABASE_URL", "MARIO_HOME", "MLFLOW_TRACKING_URI", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if name not in elsewhere}
    done = subprocess.run(
        [str(python), "-c", "from mario.cli.main import app; app()" if tree == ROOT
         else "from mario.cli import app; app()", "train", "--resume", run_id],
        cwd=tree, env={**kept, "MARIO_RUNS_DIR": str(runs_dir)},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    left = {}
    for folder in ("checkpoints", "best"):
        for path in list_checkpoints(runs_dir / run_id / folder):
            values = dict(read_checkpoint(path).values)
            # What makes two runs the same is written another way since.
            for holder in (values, values.get("trainer", {})):
                holder.pop("resume_hash", None)
            left[f"{folder}/{path.name}"] = {"digest": checkpoint_digest(path), "values": values}
    return left


@pytest.mark.skipif(not OLD_TREE, reason="MARIO_OLD_TREE names no checkout of 1ce122b")
@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_old_and_new_code_resume_to_equal_checkpoints(algorithm: str, tmp_path: Path) -> None:
    old_tree = Path(str(OLD_TREE)).resolve()
    old = _resume(unpack(algorithm, tmp_path / "old"), old_tree, old_tree / ".venv/bin/python")
    new = _resume(unpack(algorithm, tmp_path / "new"), ROOT, Path(sys.executable))
    assert old
    assert new == old
