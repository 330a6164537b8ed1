"""The recipes of docs/extending.md, applied to a copy of the tree as a reader would."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.recipe_runs import play_in, train_in
from tests.support.recipes import changed_files, copy_tree, run

PAGE = ROOT / "docs/extending.md"


def recipes() -> Iterator[tuple[str, list[str]]]:
    """Each section's title with its listings, in order."""
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title = section.splitlines()[0]
        yield title, re.findall(r"^```\w+\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def apply(tree: Path, listing: str) -> None:
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


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with every recipe of the page."""
    copy = copy_tree(tmp_path_factory.mktemp("extending"))
    for _, listings in recipes():
        for listing in listings:
            apply(copy, listing)
    return copy


def test_the_table_names_the_files_that_the_recipes_change(tree: Path) -> None:
    table = re.findall(r"^\| \[.*", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    named = [path for row in table for path in re.findall(r"`([\w./]+)`", row)]
    changed = changed_files(tree)
    # A row names the file to change, or the folder of the new module.
    for path in named:
        assert any(file.startswith(path) for file in changed), f"no recipe changes {path}"
    for file in changed:
        assert file in named or f"{Path(file).parent}/" in named, f"the table lacks {file}"
    assert len(table) == len(list(recipes()))


def test_every_added_part_is_listed(tree: Path) -> None:
    said = run(
        tree,
        "-c",
        "from mario.config.experiment import parse_config\n"
        "config = parse_config({'name': 'x', 'total_steps': 64, 'algorithm': {'name': 'a2c'},\n"
        "    'game': {'actions': 'hops', 'reward': {'name': 'calm', 'alive_per_step': 1}}}, 'x')\n"
        "print(config.algorithm.name, config.game.actions, config.game.reward.name)\n",
    )
    assert said.split() == ["a2c", "hops", "calm"]


@pytest.mark.slow
def test_the_parts_train_and_play(tree: Path) -> None:
    folder = train_in(
        tree,
        algorithm={"name": "a2c", "n_steps": 16},
        game={"actions": "hops", "reward": {"name": "calm"}, "max_steps": 12},
        task="1-1-basics",
        sinks={"mlflow": False, "prometheus": False, "csv_file": ";"},
    )
    assert "selection/score" in (folder / "numbers.csv").read_text()
    assert play_in(tree, folder) == 3
