"""The game needs neither torch nor stable-baselines3."""

from __future__ import annotations

import subprocess
import sys

from tests.support.paths import ROOT

_PROGRAM = """
import importlib, pkgutil, sys

for absent in ("torch", "stable_baselines3"):
    sys.modules[absent] = None  # importing it raises ImportError

import mario.game

for module in pkgutil.walk_packages(mario.game.__path__, "mario.game."):
    importlib.import_module(module.name)

from mario.game.env import MarioEnv

env = MarioEnv("1-1")
observation, _ = env.reset(seed=1)
observation, reward, *_ = env.step(1)
print(observation.shape, sum(name.startswith("mario.game.") for name in sys.modules))
"""


def test_every_module_of_the_game_works_with_torch_and_stable_baselines3_absent() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shape, _, modules = done.stdout.strip().rpartition(" ")
    assert shape == "(4, 84, 84)"
    assert int(modules) > 15


def test_the_block_blocks() -> None:
    program = _PROGRAM.replace("import mario.game\n", "import torch\n", 1)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "ModuleNotFoundError" in done.stderr or "ImportError" in done.stderr
