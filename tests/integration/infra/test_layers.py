"""Each contract on who may import whom fails when it is broken on purpose."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.recipes import copy_tree, run

#: Contract: the file and the line that break it.
BROKEN = {
    "Inside mario, each package has a layer and imports only those below it": (
        "mario/novelty/__init__.py",
        '"""A package without a layer."""',
    ),
    "Flows and serving stand between the command line and the jobs": (
        "mario/jobs/provenance.py",
        "import flows.decisions",
    ),
    "Training knows nothing of evaluation: it is handed a function that selects": (
        "mario/training/schedules.py",
        "import mario.evaluation.seeds",
    ),
    "Serving imports nothing that trains": ("serving/settings.py", "import mario.jobs.train"),
    "The game imports neither torch nor stable-baselines3": ("mario/game/rng.py", "import torch"),
    "What decides is pure: numpy, scipy and its own types": (
        "mario/game/smb/rewards.py",
        "import sqlalchemy",
    ),
    "The policy's runtime needs no torch": (
        "mario/policy/onnx.py",
        "def _lazily():\n    import torch",
    ),
}
_LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("layers"))


def test_every_contract_is_broken_here() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert {contract["name"] for contract in settings["contracts"]} == set(BROKEN)


@pytest.mark.parametrize("contract", BROKEN)
def test_a_broken_contract_fails_and_is_named(tree: Path, contract: str) -> None:
    name, line = BROKEN[contract]
    file = tree / name
    before = file.read_text() if file.exists() else None
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{before or ''}\n{line}\n")
    try:
        output = run(tree, "-c", _LINT, code=1)
    finally:
        if before is None:
            file.unlink()
            file.parent.rmdir()
        else:
            file.write_text(before)
    assert f"{contract} BROKEN" in " ".join(output.split())


def test_the_tree_as_it_is_keeps_them_all(tree: Path) -> None:
    assert f"Contracts: {len(BROKEN)} kept, 0 broken." in run(tree, "-c", _LINT)


def test_an_import_cycle_fails(tree: Path) -> None:
    file = tree / "mario" / "config" / "yaml_file.py"  # which mario.config.experiment imports
    before = file.read_text()
    file.write_text(f"{before}\n\ndef _lazily():\n    import mario.config.experiment\n")
    try:
        output = run(tree, "scripts/check_structure.py", code=1)
    finally:
        file.write_text(before)
    assert "import cycle: mario.config.experiment <-> mario.config.yaml_file" in output
