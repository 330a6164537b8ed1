"""A new algorithm is two files: its settings and their place in the list, and its module."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.recipes import apply_recipe, changed_files, copy_tree, run

CONFIG = """
name: recipe
total_steps: 400
environments: 4
algorithm: {name: a2c, n_steps: 8}
game: {max_steps: 12}
network: {features: tiny, threads: 1, precision: float32}
checkpoint: {every_steps: 128}
selection: {every_steps: 128, units: 1}
collapse: {action: warn}
sinks: {mlflow: false, prometheus: false}
"""

#: Trains as `mario train` does, resumes a checkpoint from the middle, and runs the exported policy.
USE = """
import json, shutil
from pathlib import Path

from mario.config.experiment import load_config
from mario.jobs.context import JobContext
from mario.jobs.train import train_run
from mario.policy.artefact import load_artefact
from mario.policy.onnx import OnnxPolicy
from mario.training.checkpoint import list_checkpoints, read_checkpoint
from mario.training.trainer import train

config = load_config("recipe.yaml")
with JobContext.open() as context:
    done = train_run(config, context)
copy = Path("runs") / "copy"
shutil.copytree(done.run_dir, copy)
shutil.rmtree(list_checkpoints(copy / "checkpoints")[0])
again = train(config, copy, resume=True)
first, second = (read_checkpoint(result.last).tensors["policy"] for result in (done.result, again))
policy = OnnxPolicy(load_artefact(done.artefact))
print(json.dumps({
    "status": done.result.status,
    "steps": [done.result.total_steps, again.attempt_steps],
    "equal": all(bool((first[name] == second[name]).all()) for name in first),
    "golden": policy.check_golden() <= 1e-4,
    "actions": len(policy.actions),
}))
"""


def test_a_new_algorithm_is_two_files(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    apply_recipe(tree, "An algorithm")
    recipe = ["mario/config/algorithms.py", "mario/training/algorithms/a2c.py"]
    assert changed_files(tree) == recipe

    (tree / "recipe.yaml").write_text(CONFIG)
    said = run(tree, "-c", USE, MARIO_RUNS_DIR=str(tree / "runs"))
    result = json.loads(said.splitlines()[-1])
    assert result["status"] == "finished"
    assert result["steps"] == [416, 416 - 384]
    assert result["equal"]
    assert result["golden"]
    assert result["actions"] == 7
