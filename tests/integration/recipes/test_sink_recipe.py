"""A new sink is two files: its setting in the configuration, and its module in `mario.tracking`."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.support.recipe_runs import train_in
from tests.support.recipes import changed_files, copy_tree, run

MODULE = '''\
"""The CSV sink: one row for each number of a run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import ClassVar

from mario.tracking.numbers import NumbersSink
from mario.tracking.opening import SinkOpening
from mario.training.sinks import RunEnd


class CsvSink(NumbersSink):
    """Appends the numbers of a run to a CSV file."""

    name: ClassVar[str] = "csv_file"

    def __init__(self, path: Path, delimiter: str) -> None:
        self._file = path.open("a", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file, delimiter=delimiter)

    def on_end(self, end: RunEnd) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, numbers: dict[str, float], steps: int) -> None:
        self._rows.writerows([steps, name, value] for name, value in sorted(numbers.items()))


def open_sink(opening: SinkOpening) -> CsvSink:
    """Open the sink."""
    return CsvSink(opening.run_dir / "numbers.csv", opening.config.sinks.csv_file)
'''


def test_a_new_sink_is_two_files(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    (tree / "mario/tracking/csv_file.py").write_text(MODULE)
    sinks = tree / "mario/config/sinks.py"
    listed = sinks.read_text()
    line = "    tensorboard: bool = False\n"
    assert line in listed
    setting = '    csv_file: Literal["off", ",", ";"] = "off"\n'
    sinks.write_text(listed.replace(line, line + setting))

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
