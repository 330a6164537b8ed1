"""Whether the collapse detector catches ruined runs, how fast, and how often it cries wolf.

    python benchmarks/collapse.py [--quick]

Labelled traces: real short runs of this project (`benchmarks/collapse_runs.py` records them into
`benchmarks/data/collapse/`), healthy and ruined in eight ways, and synthetic ones
(`benchmarks/collapse_synthetic.py`). Every second trace of each kind, by its number in the plan, is
for tuning; the targets are held against the others. The split was fixed before the detector was run
on a trace, and `--tuning` shows nothing of the held-out half. For comparison, the rule the older
system had in effect: environment 0 alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._report import Row, finish, print_table, target
from benchmarks.collapse_runs import plan, read_runs
from benchmarks.collapse_synthetic import synthetic_runs
from mario.training.collapse_detector import CollapseDetector, HealthSample

#: (update of the detection, names of the rules behind it), or None.
Detection = tuple[int, tuple[str, ...]] | None
HEALTHY_SYNTHETIC, RUINED_SYNTHETIC_EACH = 240, 14


def detect(run: dict[str, Any]) -> Detection:
    """Play a trace to the detector; the answer stays with the trace."""
    if "detection" not in run:
        run["detection"] = _detect(run)
    found: Detection = run["detection"]
    return found


def _detect(run: dict[str, Any]) -> Detection:
    detector = CollapseDetector()
    for values in run["samples"]:
        health = detector.update(HealthSample.from_dict(values))
        if health.state in ("collapsed", "diverged"):
            return int(values["update"]), health.rules
    return None


def environment_zero(run: dict[str, Any]) -> Detection:
    """The older way: collapsed when environment 0 alone falls below half of its best."""
    best, low = 0.0, 0
    for index, values in enumerate(run["samples"]):
        environments = values.get("environments_furthest_px") or [float("nan")]
        x_px = environments[0]
        if x_px != x_px or index < 10:
            continue
        low = low + 1 if x_px < 0.5 * best else 0
        best = max(best, values.get("mean_furthest_px") or 0.0)
        if low >= 3:
            return int(values["update"]), ("environment_0",)
    return None


def traces(quick: bool) -> list[dict[str, Any]]:
    """All traces, each with the half it belongs to."""
    share = 4 if quick else 1
    runs = read_runs() + synthetic_runs(HEALTHY_SYNTHETIC // share, RUINED_SYNTHETIC_EACH // share)
    half = halves(sorted((run["id"], run["label"]) for run in plan())) | halves(
        [(run["id"], run["label"]) for run in runs if run["source"] == "synthetic"]
    )
    for run in runs:
        run["half"] = half[run["id"]]
    return runs


def halves(runs: list[tuple[str, str]]) -> dict[str, str]:
    """Split (id, label) pairs: of each label every second one, starting now here, now there."""
    labels = sorted({label for _, label in runs})
    seen = {label: index for index, label in enumerate(labels)}
    found = {}
    for identity, label in runs:
        found[identity] = "tuning" if seen[label] % 2 == 0 else "held-out"
        seen[label] += 1
    return found


def judge(runs: list[dict[str, Any]], detector: Callable[[dict[str, Any]], Detection]) -> Row:
    """Count what was caught, how late, and what was no collapse."""
    healthy = [run for run in runs if run["label"] == "healthy"]
    ruined = [run for run in runs if run["label"] != "healthy"]
    false_alarms, early, delays, missed = [], 0, [], []
    for run in healthy:
        if (found := detector(run)) is not None:
            false_alarms.append((run["id"], found))
    for run in ruined:
        found = detector(run)
        if found is not None and found[0] <= run["onset"]:
            # Before anything was broken: the ruin is not caught, whatever comes later.
            early += 1
            missed.append((run["id"], found))
        elif found is None:
            missed.append((run["id"], found))
        else:
            delays.append((found[0] - run["onset"]) / run["updates"])
    return {
        "healthy": len(healthy), "ruined": len(ruined), "caught": len(delays),
        "median_delay": round(statistics.median(delays), 4) if delays else None,
        "largest_delay": round(max(delays), 4) if delays else None,
        "false_alarms": len(false_alarms),
        "alarms_before_the_ruin": early,
        "missed": [identity for identity, _ in missed],
        "alarms": [f"{identity} at {found[0]}: {', '.join(found[1])}"
                   for identity, found in false_alarms],
    }  # fmt: skip


def show(runs: list[dict[str, Any]]) -> None:
    """One line a trace that is ruined or alarmed: for whoever chooses thresholds."""
    for run in runs:
        found = detect(run)
        if run["label"] != "healthy" or found is not None:
            print(run["id"], run["label"], run["algorithm"], f"onset {run.get('onset')}",
                  f"of {run['updates']}", "missed" if found is None else found)  # fmt: skip


def main() -> int:
    """Judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tuning", action="store_true", help="the tuning half alone, every trace")
    given = parser.parse_args()
    quick: bool = given.quick
    runs = traces(quick)
    if given.tuning:
        show([run for run in runs if run["half"] == "tuning"])
        return 0
    rows: list[Row] = []
    for half in ("tuning", "held-out"):
        for source in ("real", "synthetic"):
            chosen = [run for run in runs if run["half"] == half and run["source"] == source]
            rows.append({"detector": "this one", "half": half, "source": source, "kind": "all",
                         **judge(chosen, detect)})  # fmt: skip
    held_out = [run for run in runs if run["half"] == "held-out"]
    for kind in sorted({run["label"] for run in held_out} - {"healthy"}):
        chosen = [run for run in held_out if run["label"] == kind]
        rows.append({"detector": "this one", "half": "held-out", "source": "both", "kind": kind,
                     **judge(chosen, detect)})  # fmt: skip
    total = judge(held_out, detect)
    rows.append({"detector": "this one", "half": "held-out", "source": "both", "kind": "all",
                 **total})  # fmt: skip
    rows.append({"detector": "environment 0 only", "half": "held-out", "source": "both",
                 "kind": "all", **judge(held_out, environment_zero)})  # fmt: skip
    print_table(f"{len(runs)} traces", rows, (
        "detector", "half", "source", "kind", "healthy", "ruined", "caught", "median_delay",
        "largest_delay", "false_alarms"))  # fmt: skip
    for row in rows[:4]:
        for name in ("missed", "alarms"):
            for item in row[name]:
                print(f"  {row['half']}, {row['source']}, {name}: {item}")
    real = sum(run["source"] == "real" for run in runs)
    targets = [
        target("labelled traces", 200, len(runs)),
        target("of them real runs", 60, real),
        target("share of held-out ruined runs caught", 1.0, total["caught"] / total["ruined"]),
        target("median delay, share of the run", 0.05, total["median_delay"] or 1.0, at_most=True),
        target("false alarms per 100 healthy held-out runs", 1.0,
               100 * total["false_alarms"] / total["healthy"], at_most=True),
    ]  # fmt: skip
    return finish("collapse", rows, targets, quick=quick)


if __name__ == "__main__":
    sys.exit(main())
