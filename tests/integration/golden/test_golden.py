"""What commit 1ce122b wrote is read, resumed and served by the code of today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mario.cli.main import app
from mario.store.store import ExperimentStore
from mario.training.checkpoint import list_checkpoints
from tests.support.golden import GOLDEN, checkpoint_digest, processor, run_id_in, unpack


def _mario(runs_dir: Path, *arguments: str, code: int = 0) -> str:
    """Run `mario ARGUMENTS` in this process against a runs folder."""
    names = dict.fromkeys(("MARIO_DATABASE_URL", "MLFLOW_TRACKING_URI"))
    done = CliRunner().invoke(app, list(arguments), env={**names, "MARIO_RUNS_DIR": str(runs_dir)})
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_an_interrupted_run_resumes_and_finishes_as_with_the_code_that_began_it(
    algorithm: str, tmp_path: Path
) -> None:
    runs_dir = unpack(algorithm, tmp_path)
    run_id = run_id_in(runs_dir)

    assert "finished" in _mario(runs_dir, "train", "--resume", run_id)

    with ExperimentStore.open(f"sqlite:///{runs_dir / 'mario.db'}") as store:
        run = store.runs.get(run_id)
    assert run.status == "finished"
    first, second = run.attempts
    assert (first.status, second.status) == ("interrupted", "finished")
    assert second.start_steps == first.end_steps  # it went on, it did not begin anew
    assert (runs_dir / run_id / "policy" / "policy.onnx").is_file()
    expected = json.loads((GOLDEN / "checkpoints.json").read_text())
    left = {path.name: path for path in list_checkpoints(runs_dir / run_id / "checkpoints")}
    assert left.keys() == expected[algorithm].keys()
    if processor() == expected["processor"]:  # elsewhere float32 differs in its last bits
        assert {n: checkpoint_digest(path) for n, path in left.items()} == expected[algorithm]
