"""The structure check finds cycles, names that are used twice, and what is too long."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.check_structure import (
    FUNCTION_LINES,
    MODULE_LINES,
    class_names,
    import_cycles,
    read_modules,
    sizes,
)


def _write(root: Path, **sources: str) -> None:
    for package in ("mario", "flows", "serving"):
        (root / package).mkdir(exist_ok=True)
        (root / package / "__init__.py").write_text("")
    for name, source in sources.items():
        (root / "mario" / f"{name}.py").write_text(source)


def _findings(root: Path, **sources: str) -> list[str]:
    _write(root, **sources)
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


def test_a_class_name_that_is_defined_twice_is_found(tmp_path: Path) -> None:
    _write(tmp_path, a="class Run: ...\n", b="def make():\n    class Run: ...\n")
    assert list(class_names(read_modules(tmp_path))) == [
        "class Run is defined 2 times: mario.a, mario.b"
    ]


def test_a_type_alias_counts_like_a_class(tmp_path: Path) -> None:
    _write(
        tmp_path, a="FloatArray = list[float]\nLIMIT = 1\n", b="class FloatArray: ...\nLIMIT = 2\n"
    )
    assert list(class_names(read_modules(tmp_path))) == [
        "class FloatArray is defined 2 times: mario.a, mario.b"
    ]


def test_long_modules_and_functions_are_found(tmp_path: Path) -> None:
    body = "    pass\n" * (FUNCTION_LINES - 1)
    _write(tmp_path, a=f"def fits():\n{body}", b="pass\n" * MODULE_LINES)
    assert list(sizes(read_modules(tmp_path))) == []
    _write(tmp_path, a=f"def long():\n{body}    pass\n", b="pass\n" * (MODULE_LINES + 1))
    assert list(sizes(read_modules(tmp_path))) == [
        f"mario.a.long: got {FUNCTION_LINES + 1} lines, expected at most {FUNCTION_LINES}",
        f"mario.b: got {MODULE_LINES + 1} lines, expected at most {MODULE_LINES}",
    ]
