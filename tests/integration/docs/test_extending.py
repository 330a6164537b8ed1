"""The recipes of docs/extending.md, applied to a copy of the tree as a reader would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.recipe_runs import play_in, train_in
from tests.support.recipes import PAGE, apply_recipe, changed_files, copy_tree, recipes, run


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with every recipe of the page."""
    copy = copy_tree(tmp_path_factory.mktemp("extending"))
    for title in recipes():
        apply_recipe(copy, title)
    return copy


def test_each_row_of_the_table_names_the_files_that_its_recipe_changes(tree: Path) -> None:
    table = re.findall(
        r"^\| \[.*?\]\(#(.+?)\) \| (.+?) \| (.+?) \|",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    rows = {anchor: (files, number) for anchor, files, number in table}
    assert list(rows) == [title.lower().replace(" ", "-") for title in recipes()]
    changed = set()
    for (files, number), listings in zip(rows.values(), recipes().values(), strict=True):
        heads = [re.match(r"(?:# |--- )(\S+)", listing) for listing in listings]
        of_recipe = {head[1] for head in heads if head}
        changed |= of_recipe
        # A row names the file to change, or the folder of the new module; after ";" the files
        # that only some such parts need.
        always, *sometimes = (re.findall(r"`([\w./]+)`", part) for part in files.split(";"))
        named = [*always, *(path for part in sometimes for path in part)]
        assert {file if file in named else f"{Path(file).parent}/" for file in of_recipe} == set(
            named
        ), files
        counts = sorted({len(always), len(of_recipe)})
        assert number == " or ".join(map(str, counts)), files
    assert sorted(changed) == changed_files(tree)


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
