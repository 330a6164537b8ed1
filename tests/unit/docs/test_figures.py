"""Tables of measurements in the documentation are those of the committed results files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.paths import ROOT

Row = dict[str, Any]


def results(name: str) -> tuple[list[Row], dict[str, float]]:
    """Rows of a results file, and what was measured for each target."""
    document = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    return document["rows"], {t["name"]: t["measured"] for t in document["targets"]}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


TRAINING = {
    "usual stack (nes-py, wrappers, SubprocVecEnv), SB3's CnnPolicy": "usual stack, SB3 policy",
    "native console, SB3's CnnPolicy": "native console, SB3 policy",
    "native console, `nature`, bfloat16: the default": "native, nature, bfloat16 (the default)",
    "the same in float32": "native, nature, float32",
    "the same with 64 environments, rollouts of 32": "native, nature, 64 environments",
    "the same, compiled": "native, nature, compiled",
    "`small`, bfloat16": "native, small, bfloat16",
}


@pytest.mark.parametrize(("words", "name"), TRAINING.items())
def test_training_speed(words: str, name: str) -> None:
    rows, _ = results("training")
    (row,) = (row for row in rows if row["name"] == name)
    shares = " | ".join(f"{row[part]:.0%}" for part in ("games", "inference", "update"))
    line = f"| {words} | {row['steps_per_second']['median']:,.0f} | {shares} |"
    assert line in page("reference/training-speed.md")


@pytest.mark.parametrize(
    ("words", "detector", "source"),
    [
        ("real runs", "this one", "real"),
        ("synthetic", "this one", "synthetic"),
        ("all", "this one", "both"),
        ("environment 0 alone, the older way", "environment 0 only", "both"),
    ],
)
def test_collapse_detection(words: str, detector: str, source: str) -> None:
    rows, _ = results("collapse")
    (row,) = (
        row
        for row in rows
        if (row["detector"], row["half"], row["source"], row["kind"])
        == (detector, "held-out", source, "all")
    )
    counts = " | ".join(str(row[k]) for k in ("healthy", "false_alarms", "ruined", "caught"))
    line = f"| {words} | {counts} | "
    (found,) = (
        text for text in page("reference/collapse-rules.md").splitlines() if text.startswith(line)
    )
    delays = [float(cell.strip(" %")) / 100 for cell in found.removeprefix(line).split("|")[:2]]
    assert delays == pytest.approx([row["median_delay"], row["largest_delay"]], abs=0.005)


def test_console_ratios() -> None:
    _, measured = results("console")
    guide = page("guides/console.md")
    drawn = measured["raw frames/s drawn, times nes-py"]
    assert f"| frames/s, every one drawn, over nes-py | {drawn:.0f} |" in guide
    assert f"{drawn:.0f} times as fast" in (ROOT / "README.md").read_text(encoding="utf-8")
    for words, target in (
        ("with the usual wrappers", "agent steps/s a core, times the usual stack"),
        ("with a process per core", "agent steps/s on all cores, times SubprocVecEnv"),
    ):
        assert f"{words} | {measured[target]:.0f} |" in guide
    assert f"takes {measured['memory for each environment, MB']:g} MB" in guide
