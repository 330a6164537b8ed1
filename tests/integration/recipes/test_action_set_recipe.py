"""A new action set is one file: its line in the configuration."""

from __future__ import annotations

from pathlib import Path

from tests.support.recipe_runs import manifest, play_in, train_in
from tests.support.recipes import changed_files, copy_tree


def test_a_new_action_set_is_one_file(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    sets = tree / "mario/config/action_sets.py"
    listed = sets.read_text()
    line = '    "right_only": _RIGHT_ONLY,\n'
    assert line in listed
    sets.write_text(listed.replace(line, line + '    "hops": ("noop", "A", "left+A+B"),\n'))

    folder = train_in(tree, game={"actions": "hops", "max_steps": 12})
    assert manifest(folder)["actions"] == [
        {"name": "noop", "buttons": 0},
        {"name": "A", "buttons": 0b0000_0001},
        {"name": "left+A+B", "buttons": 0b0100_0011},
    ]
    assert play_in(tree, folder) == 3
    assert changed_files(tree) == ["mario/config/action_sets.py"]
