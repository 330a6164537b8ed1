"""Compare today's speed with another commit's: quick benchmarks of both trees, turn and turn about.

    python benchmarks/against.py COMMIT [--pairs 4] [--only console training evaluation serving]

The other commit is checked out aside and runs in a virtual environment that shares this one's
packages. Each pair runs a benchmark's `--quick` form once in each tree, in alternating order; a
row's figure is the ratio of rates, today / other (times are inverted, so above 1 is faster in every
row). A row is slower when the 95% bootstrap interval of its median ratio lies below 1.

This is no part of `make bench`: it has no results file and needs a commit to compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from _report import ROOT, Row, median_interval, print_table

BENCHMARKS = ("console", "training", "evaluation", "serving")
#: What a row measures; times are inverted.
_RATES = ("frames_per_second", "steps_per_second", "requests_per_second")
_TIMES = ("seconds", "p50_ms")


def check_out(commit: str, folder: Path) -> Path:
    """Clone `commit` into `folder`, with an environment of its own; return its Python."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    subprocess.run(["git", "checkout", "--quiet", commit], cwd=folder, check=True)
    venv.create(folder / ".venv", with_pip=False)
    python = folder / ".venv" / "bin" / "python"
    packages = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()
    )  # fmt: skip
    # The tree comes before this environment, so that its own code is the code that runs.
    (packages / "0-tree.pth").write_text(f"{folder}\n")
    shared = {sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("site-packages"))}
    (packages / "1-shared.pth").write_text("".join(f"{path}\n" for path in sorted(shared)))
    # Benchmarks of both trees hand their rows over in the same way.
    shutil.copy(ROOT / "benchmarks" / "_report.py", folder / "benchmarks")
    for module in (ROOT / "mario" / "game").glob("_native.*.so"):
        shutil.copy(module, folder / "mario" / "game")
    return python


def run(python: Path | str, tree: Path, name: str) -> list[Row]:
    """Run one quick benchmark in a tree and return its rows; none where it failed."""
    with tempfile.NamedTemporaryFile(suffix=".json") as output:
        done = subprocess.run(
            [python, f"benchmarks/{name}.py", "--quick"],
            cwd=tree,
            env={**os.environ, "BENCHMARK_ROWS": output.name},
            capture_output=True,
            text=True,
            check=False,  # a missed target of a quick run is no failure here
        )
        text = Path(output.name).read_text()
    if not text:
        print(f"{name} failed in {tree}:\n{done.stderr[-2000:]}")
        return []
    rows: list[Row] = json.loads(text)
    return rows


def rates(rows: list[Row]) -> Iterator[tuple[str, float]]:
    """The name and the rate of each measured value; larger is faster."""
    for row in rows:
        label = ", ".join(
            f"{key} {value}" if isinstance(value, int) else str(value)
            for key, value in row.items()
            if isinstance(value, str) or key in ("environments", "concurrency", "units_of_each")
        )
        for key in (*_RATES, *_TIMES):
            value = row.get(key)
            median = value["median"] if isinstance(value, dict) else value
            if isinstance(median, int | float) and median > 0:
                yield f"{label} [{key}]", 1 / median if key in _TIMES else median


def compare(commit: str, names: list[str], pairs: int) -> int:
    """Measure, print a table a benchmark, and return 1 where a row is slower."""
    slower = []
    with tempfile.TemporaryDirectory() as aside:
        other = Path(aside) / "other"
        python = check_out(commit, other)
        for name in names:
            ratios: dict[str, list[float]] = defaultdict(list)
            for pair in range(pairs):
                trees = [("today", sys.executable, ROOT), ("other", str(python), other)]
                measured = {
                    which: dict(rates(run(interpreter, tree, name)))
                    for which, interpreter, tree in (trees if pair % 2 else reversed(trees))
                }
                for label in measured["today"].keys() & measured["other"].keys():
                    ratios[label].append(measured["today"][label] / measured["other"][label])
            table = []
            for label, values in sorted(ratios.items()):
                low, high = median_interval(values)
                verdict = "slower" if high < 1 else "faster" if low > 1 else ""
                table.append({"row": label, "today / other": round(statistics.median(values), 3),
                              "95%": f"{low:.3f}-{high:.3f}", "": verdict})  # fmt: skip
                if verdict == "slower":
                    slower.append(f"{name}: {label}")
            print_table(f"{name}, {pairs} pairs", table, ["row", "today / other", "95%", ""])
    print(f"\nslower: {'; '.join(slower) or 'nothing'}")
    return 1 if slower else 0


def main() -> int:
    """Read the arguments and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    arguments = parser.parse_args()
    return compare(arguments.commit, arguments.only, arguments.pairs)


if __name__ == "__main__":
    sys.exit(main())
