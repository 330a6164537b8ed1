"""Which checkpoints of a run remain after a kill at any time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mario.training.checkpoint import list_checkpoints, read_checkpoint
from mario.training.trainer import SelectionScore, train
from tests.support.training_runs import small_config


class _Killed(BaseException):
    """Ends a run as SIGKILL does: nothing is written after it."""


def test_a_kill_never_costs_the_best_that_the_last_checkpoint_names(tmp_path: Path) -> None:
    """Many better ones are found between two checkpoints; then the run is killed, and resumed."""
    config = small_config(
        selection={"every_steps": 64, "units": 1}, checkpoint={"every_steps": 384, "keep": 1}
    )
    folder = tmp_path / "run"

    def kill_after(steps: int) -> Any:
        def progress(now: Any) -> None:
            if now.total_steps >= steps:
                raise _Killed

        return progress

    better = iter(range(1, 100))
    with pytest.raises(_Killed):
        train(
            config, folder, select=lambda _: SelectionScore(next(better) / 100),
            progress=kill_after(640),
        )  # fmt: skip
    (last,) = list_checkpoints(folder / "checkpoints")
    name, _, score = read_checkpoint(last).values["trainer"]["best"]
    bests = [path.name for path in list_checkpoints(folder / "best")]
    assert name == bests[-1], "the one it names, and none older"
    assert len(bests) == 2, "and the newest"

    with pytest.raises(_Killed):
        train(
            config, folder, resume=True, select=lambda _: SelectionScore(0.001),
            progress=kill_after(int(last.name.split("-")[1]) + 64),
        )  # fmt: skip
    assert [path.name for path in list_checkpoints(folder / "best")] == [name]
    done = train(config, folder, resume=True, select=lambda _: SelectionScore(0.001))
    assert done.best is not None
    assert (done.best.path.name, done.best.score) == (name, score)
    read_checkpoint(done.best.path)
