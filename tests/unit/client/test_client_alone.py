"""The client works with numpy as the only installed package."""

from __future__ import annotations

import subprocess
import sys

from mario.client.client import _OBSERVATION
from mario.game.smb.observations.pixels import OBSERVATION_SHAPE
from tests.support.paths import ROOT

BLOCK_ALL_BUT_NUMPY = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        top, _, rest = name.partition(".")
        if top in sys.stdlib_module_names or top == "numpy":
            return None
        if top == "mario" and rest.partition(".")[0] in ("", "errors", "client"):
            return None
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
"""


def run_blocked(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK_ALL_BUT_NUMPY + code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def test_the_block_stops_every_other_module() -> None:
    for module in ("mario.game.batch", "mario.config", "onnxruntime"):
        done = run_blocked(f"import {module}")
        assert done.returncode != 0, module
        assert "No module named" in done.stderr, module


def test_the_client_imports_and_encodes_with_numpy_alone() -> None:
    code = """
import numpy as np
from mario.client.client import MarioClient
from mario.errors import ServingError
with MarioClient("http://127.0.0.1:9") as client:
    try:
        client.predict(np.zeros((1, 4, 84, 84), np.uint8))
    except ServingError as error:
        print(error)
"""
    done = run_blocked(code)
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:9: got no connection" in done.stdout


def test_playing_without_the_game_says_what_to_install() -> None:
    done = run_blocked("from mario.client.client import main; sys.exit(main([]))")
    assert done.returncode == 2
    assert "got no connection" in done.stderr

    code = "from mario.client.client import MarioClient; MarioClient('http://127.0.0.1:9').play()"
    done = run_blocked(code)
    assert done.returncode != 0
    assert "ServingError: play: got no game on this machine" in done.stderr
    assert "start_session and act" in done.stderr


def test_the_clients_copy_of_the_observation_shape_is_equal() -> None:
    assert _OBSERVATION == OBSERVATION_SHAPE
