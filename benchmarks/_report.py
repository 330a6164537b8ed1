"""What every benchmark shares: the machine, the table, the targets, the results file."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

Row = dict[str, Any]


def machine() -> dict[str, Any]:
    """Describe the machine that measures."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines()
                 if line.startswith("model name")]  # fmt: skip
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": cores(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str:
    """Name the commit that is checked out, with ``-dirty`` where more than results differs."""
    try:
        head, changed = (
            subprocess.run(
                ["git", *command], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (
                ("rev-parse", "--short", "HEAD"),
                ("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results"),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


#: What is measured is what stood here when the benchmark began, not what does when it ends.
MEASURED_COMMIT = commit()


def median_interval(values: Sequence[float], share: float = 0.95) -> list[float]:
    """Percentile bootstrap interval of the median (Efron 1979), from 10,000 fixed draws.

    Args:
        values: one for each repeat or pair.
        share: that the interval covers.
    """
    generator = random.Random(0)
    medians = sorted(
        statistics.median(generator.choices(values, k=len(values))) for _ in range(10_000)
    )
    outside = (1 - share) / 2
    return [round(medians[int(outside * 9_999)], 4), round(medians[int((1 - outside) * 9_999)], 4)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of repeats."""
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def target(name: str, goal: float, measured: float, *, at_most: bool = False) -> dict[str, Any]:
    """Hold a measured value against its goal (at least, or at most)."""
    met = measured <= goal if at_most else measured >= goal
    return {"name": name, "goal": goal, "measured": round(measured, 3), "met": bool(met)}


def print_table(title: str, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Print rows as a table, one column each for `columns`."""
    cells = [[_text(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(c), *(len(r[i]) for r in cells)) for i, c in enumerate(columns)]
    print(f"\n{title}")
    print("  ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True)))
    for row in cells:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)))


def _text(value: object) -> str:
    if isinstance(value, dict) and "median" in value:
        return f"{value['median']:,.4g} ({value['min']:,.4g}-{value['max']:,.4g})"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return "" if value is None else str(value)


def finish(
    benchmark: str, rows: Sequence[Row], targets: Sequence[dict[str, Any]], *, quick: bool
) -> int:
    """Print the targets and write the results file (not for a quick run).

    Where BENCHMARK_ROWS names a file, the rows are written there as well; `against.py` reads them.

    Returns:
        The exit status: 0 when every target is met, else 1.
    """
    print()
    for goal in targets:
        print(f"{'met   ' if goal['met'] else 'MISSED'}  {goal['name']}: "
              f"{goal['measured']:,} (goal {goal['goal']:,})")  # fmt: skip
    if copy := os.environ.get("BENCHMARK_ROWS"):
        Path(copy).write_text(json.dumps(list(rows)))
    if not quick:
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"{benchmark}.json"
        document = {
            "benchmark": benchmark, "commit": MEASURED_COMMIT, "machine": machine(),
            "rows": list(rows), "targets": list(targets),
        }  # fmt: skip
        path.write_text(json.dumps(document, indent=2) + "\n")
        print(f"\nwritten: {path.relative_to(ROOT)}")
    return 0 if all(goal["met"] for goal in targets) else 1
