"""Rows of `gate_calibration.py`: the rules, how a cell is judged, and streams of real sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gate_simulation import Outcome, run_gate

from mario.config.gate import GateRule

CLEAR = GateRule(primary="clear")
SCORE = GateRule(primary="score")
PROGRESS = GateRule(primary="progress")
CAP = SCORE.max_units
#: Equal and worse policies are judged so many times as often as others: their promoted shares are
#: held to .05 (with the upper end of its interval) and to .005 in some fifty cells at once.
BATCHES = 4
#: Differences of the clear rate by level that average to 0, repeated to fill a task.
UNLIKE = np.array([0.4, -0.4, 0.2, -0.2])


Row = dict[str, Any]


def cell(
    kind: str, name: str, rule: GateRule, differences: np.ndarray, levels: int = 1, **more: Any
) -> Row:
    return row_of(kind, name, rule, run_gate(differences, rule, levels), more)


def row_of(kind: str, name: str, rule: GateRule, outcome: Outcome, more: dict[str, Any]) -> Row:
    return {
        "kind": kind,
        "cell": name,
        "primary": rule.primary,
        "true_effect": more.pop("true_effect", 0.0),
        **outcome.summary(),
        **more,
    }


def batched(
    batches: int,
    kind: str,
    name: str,
    rule: GateRule,
    draw: Callable[[], np.ndarray],
    levels: int = 1,
    **more: Any,
) -> Row:
    """A cell of several batches of trials, each drawn when the last is done."""
    outcome = Outcome.joined([run_gate(draw(), rule, levels) for _ in range(batches)])
    return row_of(kind, name, rule, outcome, more)
