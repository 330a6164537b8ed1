"""Apply a recipe of `docs/extending.md` to a copy of the working tree, and use the result."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

PAGE = ROOT / "docs/extending.md"

#: Addresses that would make a command in the copy use something outside it.
_OUTSIDE = (
    "MARIO_DATABASE_URL", "MARIO_HOME", "MARIO_RUNS_DIR", "MLFLOW_TRACKING_URI", "PREFECT_API_URL",
    "PREFECT_HOME",
)  # fmt: skip

#: An editable install finds the packages of its own tree before those on PYTHONPATH.
_SITECUSTOMIZE = """\
import sys

sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]
"""


def recipes() -> dict[str, list[str]]:
    """Read the page: each section's title with its listings, in order."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        section.splitlines()[0]: re.findall(
            r"^```\w+\n(.*?)^```", section, re.MULTILINE | re.DOTALL
        )
        for section in sections
    }


def apply_recipe(tree: Path, title: str) -> None:
    """Apply the listings of one section of the page to a copy, such as those of "An algorithm"."""
    for listing in recipes()[title]:
        apply_listing(tree, listing)


def apply_listing(tree: Path, listing: str) -> None:
    """Add a new file, append to one, or replace the lines of each hunk, which occur once."""
    head, body = listing.split("\n", maxsplit=1)
    if new := re.fullmatch(r"# (\S+) \(new\)", head):
        (tree / new[1]).write_text(body)
    elif appended := re.fullmatch(r"# (\S+) \(append\)", head):
        file = tree / appended[1]
        file.write_text(file.read_text() + body)
    elif changed := re.fullmatch(r"--- (\S+)", head):
        file = tree / changed[1]
        text = file.read_text()
        for hunk in body.split("@@\n"):
            lines = hunk.splitlines()
            old = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
            new_text = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
            assert text.count(old) == 1, f"{head}: {old!r} occurs {text.count(old)} times"
            text = text.replace(old, new_text)
        file.write_text(text)


def copy_tree(tmp_path: Path) -> Path:
    """Copy the working tree into `tmp_path/tree`, as a Git repository with one commit.

    Copied are the files that Git tracks or would track, as they are now, and the compiled console.

    Returns:
        The copy's root.
    """
    tree = tmp_path / "tree"
    listed = _git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    compiled = (str(file.relative_to(ROOT)) for file in ROOT.glob("mario/game/_native*.so"))
    for name in {*listed.rstrip("\0").split("\0"), *compiled}:
        if (ROOT / name).is_file():  # a deleted file is still tracked
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    _git(tree, "init", "--quiet")
    _git(tree, "add", "--all")
    _git(tree, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "copy")
    return tree


def changed_files(tree: Path) -> list[str]:
    """List the files of a copy that were changed, added or deleted, without what Git ignores."""
    status = _git(tree, "status", "--porcelain", "--untracked-files=all", "--no-renames")
    return sorted(line[3:] for line in status.splitlines())


def run(tree: Path, *argv: str, code: int = 0, **environment: str) -> str:
    """Run `python ARGV…` in a copy, with the copy's packages, and return what it printed.

    The environment variables that name databases, servers and folders elsewhere are removed first.

    Args:
        tree: from `copy_tree`.
        argv: such as ``"-m", "mario.cli", "train", …``.
        code: the exit code that is expected.
        environment: further environment variables.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _OUTSIDE}
    path = os.pathsep.join([str(tree.parent / "hooks"), str(tree)])
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=tree, env={**kept, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == code, (
        f"{argv} exited with {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done.stdout


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout
