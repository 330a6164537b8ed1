"""The package where there is no compiler, and the time the native console takes to build."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PARTS = ("CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE", "mario", "flows", "serving")
BUILD_TOOLS = Path(sys.executable).parent

Install = Callable[[dict[str, str]], Path]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Install a copy of the sources into a folder of its own; returns that folder."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(ROOT / part, source / part, ignore=ignored)
        else:
            shutil.copy(ROOT / part, source)

    def run(environment: dict[str, str]) -> Path:
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
             "--no-build-isolation", "--target", str(target), str(source)],
            check=True, cwd=tmp_path, env={"HOME": str(tmp_path), **environment},
        )  # fmt: skip
        return target

    return run


def ask(target: Path, question: str) -> str:
    """Run a line of Python on the installed package, and what the tests' environment has."""
    # `-S` leaves out the editable install's hook, which would give the sources' own module.
    code = f"import sys; sys.path[:0] = {[str(target)]}; sys.path += {sys.path}; {question}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=target, check=False, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def test_without_a_compiler_the_package_installs_and_says_what_to_do(
    install: Install, tmp_path: Path
) -> None:
    nowhere = str(tmp_path / "no-such-compiler")
    # By name too: CMake looks for compilers in the system's folders whatever the path says.
    target = install({"PATH": str(BUILD_TOOLS), "CC": nowhere, "CXX": nowhere})
    assert not list(target.rglob("_native*.so"))
    opened = "from mario.game.console.factory import open_console; console = open_console('{}')"
    error = ask(target, opened.format("native"))
    assert "mario.errors.ConsoleError: the native console is not built" in error
    assert "install a C++17 compiler" in error
    assert "set `console: nes-py`" in error
    played = ask(target, opened.format("nes-py") + "; console.step(0, 3); print(console.ram.size)")
    assert played.strip() == "2048"


@pytest.mark.slow
def test_the_native_console_builds_in_under_90_seconds(install: Install) -> None:
    """Of processor time, since other work may take the cores meanwhile."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    target = install({"PATH": f"{BUILD_TOOLS}{os.pathsep}{os.environ['PATH']}"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{took_seconds:.1f} s of processor time")
    assert took_seconds < 90
    question = "import mario.game._native as module; print(module.__file__)"
    assert ask(target, question).strip().startswith(str(target))
