"""A new kind of observation is its module and its name in the list."""

from __future__ import annotations

from pathlib import Path

from tests.support.recipe_runs import manifest, play_in, train_in
from tests.support.recipes import changed_files, copy_tree, run

MODULE = '''\
"""The observation `basics`: where Mario is, what he does, and the clock; float32 (6,)."""

from __future__ import annotations

import numpy as np

from mario.game.smb.memory import Ram
from mario.game.console.contract import UInt8Array
from mario.game.smb.observations.contract import ObservationKind, Observations

_BYTES = [Ram.PLAYER_PAGE, Ram.PLAYER_X, Ram.PLAYER_SCREEN_Y, Ram.FLOAT_STATE, Ram.TIME, Ram.LIVES]


def observe(pixels: UInt8Array, ram: UInt8Array) -> Observations:
    """Scale some bytes to 0 … 1: float32 (N, 6)."""
    return ram[:, _BYTES].astype(np.float32) / np.float32(255)


OBSERVATION = ObservationKind("basics", "basics-v1", (len(_BYTES),), "float32", observe)
'''

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
    listed = tree / "mario/config/observations.py"
    line = 'OBSERVATIONS: tuple[str, ...] = ("pixels",)'
    text = listed.read_text()
    assert text.count(line) == 1
    listed.write_text(text.replace(line, line.replace(",)", ', "basics")')))
    (tree / "mario/game/smb/observations/basics.py").write_text(MODULE)

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
