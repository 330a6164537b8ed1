"""A setting with a default, added to every section of the configuration, changes no identity."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from tests.support.golden import GOLDEN
from tests.support.recipes import changed_files, copy_tree, run

#: Prints the identities of every golden experiment and sweep, made-up settings set as asked.
_SCRIPT = """\
import json, sys
from mario.config.experiment import parse_config
from mario.config.identities import identity_of_experiment, identity_of_run, identity_of_test
from mario.config.sweep import Sweep, SweepConfig

written, path = json.load(open("tests/data/golden/identities.json")), sys.argv[1]

def with_setting(values):
    if path:
        *parents, last = path.split(".")
        section = values
        for parent in parents:
            section = section[parent]
        if section.get("name") != "game":  # the reward that has no terms
            section[last] = 8
    return parse_config(values, "golden")

shown = {}
for name, each in written["experiments"].items():
    config = with_setting(each["config"])
    shown[name] = {
        "experiment": identity_of_experiment(config), "run": identity_of_run(config),
        "test": identity_of_test("a" * 64, "b" * 64, config.level_names, config.gate)}
for name, each in written["sweeps"].items():
    sweep = Sweep(SweepConfig.model_validate(each["settings"]), with_setting(each["config"]))
    shown[name] = {"sweep": sweep.content_hash()}
print(json.dumps(shown))
"""


def _add_setting(file: Path) -> int:
    """Add `made_up: int = 7` to every section that a file declares; returns how many there are."""
    source = file.read_text()
    lines = source.splitlines(keepends=True)
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    sections = [
        node
        for node in classes
        if any(isinstance(base, ast.Name) and base.id in _BASES for base in node.bases)
    ]
    for node in reversed(sections):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        at = (fields or node.body)[-1].end_lineno
        lines.insert(at or 0, "    made_up: int = 7\n")
    file.write_text("".join(lines))
    return len(sections)


#: A class below one of these is a section; one below a section inherits the setting.
_BASES = {"Section", "BaseModel"}


def test_a_made_up_setting_in_every_section_changes_no_identity(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    added = sum(_add_setting(file) for file in sorted((tree / "mario/config").glob("*.py")))
    assert added >= 18
    assert all(name.startswith("mario/config/") for name in changed_files(tree))
    (tree / "show.py").write_text(_SCRIPT)
    written = json.loads((GOLDEN / "identities.json").read_text())
    keys = ("experiment", "run", "test", "sweep")
    expected = {
        name: {key: each[key] for key in keys if key in each}
        for name, each in (written["experiments"] | written["sweeps"]).items()
    }
    assert json.loads(run(tree, "show.py", "")) == expected
    # Where it is not at its default, it changes the identities that it belongs to.
    for path, kinds in (
        ("made_up", {"experiment", "run", "sweep"}),
        ("algorithm.made_up", {"experiment", "run", "sweep"}),
        ("game.reward.made_up", {"experiment", "run", "sweep"}),
        ("sinks.made_up", {"experiment", "sweep"}),
        ("evaluation.made_up", {"experiment", "sweep"}),
        ("gate.made_up", {"experiment", "run", "test", "sweep"}),
    ):
        now = json.loads(run(tree, "show.py", path))
        for name, each in expected.items():
            differ = {key for key in each if now[name][key] != each[key]}
            config = (written["experiments"] | written["sweeps"])[name]["config"]
            applies = path != "game.reward.made_up" or config["game"]["reward"]["name"] != "game"
            assert differ == (kinds & each.keys() if applies else set()), (path, name)
