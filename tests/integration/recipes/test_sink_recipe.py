"""A new sink is two files: its setting in the configuration, and its module in `mario.tracking`."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.support.recipe_runs import train_in
from tests.support.recipes import apply_recipe, changed_files, copy_tree, run


def test_a_new_sink_is_two_files(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    apply_recipe(tree, "A sink")

    recorded = train_in(tree, sinks={"mlflow": False, "prometheus": False, "csv_file": ";"})
    with (recorded / "numbers.csv").open(newline="") as file:
        rows = [
            (int(steps), name, float(value))
            for steps, name, value in csv.reader(file, delimiter=";")
        ]
    assert {steps for steps, name, _ in rows if name == "train/steps_per_second"} >= {512}
    (score,) = [value for _, name, value in rows if name == "selection/score"]
    assert 0 <= score <= 1
    labels = run(
        tree, "-c", "from mario.telemetry.training import SINK_LABELS; print(*SINK_LABELS)"
    )
    assert "csv_file" in labels.split()
    assert changed_files(tree) == ["mario/config/sinks.py", "mario/tracking/csv_file.py"]
