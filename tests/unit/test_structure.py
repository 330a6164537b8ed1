"""The structure check finds import cycles, wherever in the code the imports are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.check_structure import import_cycles, read_modules


def _findings(root: Path, **sources: str) -> list[str]:
    for package in ("mario", "flows", "serving"):
        (root / package).mkdir(exist_ok=True)
        (root / package / "__init__.py").write_text("")
    for name, source in sources.items():
        (root / "mario" / f"{name}.py").write_text(source)
    return list(import_cycles(read_modules(root)))


@pytest.mark.parametrize(
    "back",
    [
        "import mario.low\n",
        "from mario import low\n",
        "from mario.low import thing\n",
        "from . import low\n",
        "from .low import thing\n",
        "def function():\n    from mario.low import thing\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mario.low import thing\n",
    ],
)
def test_a_cycle_is_found_whatever_form_the_import_has(tmp_path: Path, back: str) -> None:
    sources = {"high": "from mario.middle import thing\n", "middle": back}
    assert _findings(tmp_path, **sources, low="thing = 1\n") == []
    assert _findings(tmp_path, low="import mario.high\n") == [
        "import cycle: mario.high <-> mario.low <-> mario.middle"
    ]


def test_each_group_of_modules_is_reported_once(tmp_path: Path) -> None:
    found = _findings(
        tmp_path,
        a="import mario.b\n",
        b="import mario.a\n",
        c="import mario.d\n",
        d="import mario.c, mario.a\n",
        user="import mario.a, mario.c\n",
    )
    assert found == ["import cycle: mario.a <-> mario.b", "import cycle: mario.c <-> mario.d"]
