"""A new kind of observation is its module and its name in the list."""

from __future__ import annotations

from pathlib import Path

from tests.support.recipe_runs import manifest, play_in, train_in
from tests.support.recipes import apply_recipe, changed_files, copy_tree, run

SEE = """
import sys
from mario.policy.artefact import load_artefact
from mario.policy.onnx import OnnxPolicy

policy = OnnxPolicy(load_artefact(sys.argv[1]))
golden = policy.artefact.golden.observations
distinct = {row.tobytes() for row in golden}
print(policy.observation.name, golden.dtype, golden.shape[1:], len(distinct))
"""


def test_a_new_observation_is_two_files(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    apply_recipe(tree, "An observation")

    folder = train_in(tree, task="1-1-basics")
    assert manifest(folder)["observation"] == {
        "shape": [6], "dtype": "float32", "preprocessing": "basics-v1",
    }  # fmt: skip
    assert manifest(folder)["training_statistics"] is None
    *kind, distinct = run(tree, "-c", SEE, str(folder / "policy")).split()
    assert kind == ["basics", "float32", "(6,)"]
    assert int(distinct) > 10
    assert play_in(tree, folder) == 7
    assert changed_files(tree) == [
        "mario/config/observations.py", "mario/game/smb/observations/basics.py",
    ]  # fmt: skip
