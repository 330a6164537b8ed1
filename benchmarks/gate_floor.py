"""What no test can undercut: floors of the score test's units, from the rows of the calibration.

    python benchmarks/gate_floor.py

reads `benchmarks/results/gate_calibration.json` and prints the table in
`docs/reference/gate-statistics.md` of the real pairs on which the score test needs
more than .8 of the clear test's units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from _report import RESULTS

ALPHA = 0.05
#: What the score test is asked to need at most, as a share of the clear test's units.
GOAL = 0.8
#: A pair improves beside its clears when its score does so by more than this.
BESIDE = 0.01

Row = dict[str, Any]


def divergence(power: float, alpha: float) -> float:
    """Kullback-Leibler divergence of a coin that falls with `power` from one with `alpha`.

    Args:
        power: in [0, 1]; what is below alpha is taken for alpha, at no cost at all.
        alpha: in (0, 1).
    """
    power = max(power, alpha)
    found = power * math.log(power / alpha)
    return found if power == 1 else found + (1 - power) * math.log((1 - power) / (1 - alpha))


def floor_units(growth: float, power: float, alpha: float = ALPHA) -> float:
    """Least mean units of any test at level alpha that finds a gain with `power`.

    Whatever a test observes until it stops tells the truth from a distribution with mean at most 0
    at least as well as its answer does, and a unit tells them apart by `growth` at most where the
    nearest such distribution is taken: mean units x growth >= divergence (Wald 1945, Ann. Math.
    Statist. 16; in this form Kaufmann, Cappe & Garivier 2016, JMLR 17, Lemma 1). It holds for any
    rule of stopping and for stakes that adapt, too.

    Args:
        growth: of the best bet, per unit (`gate_simulation.fastest_bet`).
        power: chance that the test promotes, in [0, 1].
        alpha: its level.
    """
    return divergence(power, alpha) / growth


def growth_of(row: Row) -> float:
    """Growth of the best bet on scores of a row "together", from its floor at power 1."""
    return -math.log(ALPHA) / float(row["floor_units"])


def floors(row: Row) -> dict[str, float]:
    """Floors of a row "together": at power 1, at the clear test's own power and at power .9."""
    growth = growth_of(row)
    return {
        "sure": floor_units(growth, 1.0),
        "equal_power": floor_units(growth, float(row["clear_test_promoted"])),
        "power_.9": floor_units(growth, 0.9),
    }


def stake_needed(row: Row) -> float:
    """Share of the stake that a mixture must have on the best bet to reach the goal; above 1: none.

    As if the rest of the stake brought nothing: a share w of it ends log(1/w) further down, which
    the bet makes good in log(1/w) over its growth units.
    """
    late = float(row["goal_units"]) - float(row["best_bet_units_mean"])
    return math.exp(-late * growth_of(row))


def real_pairs(rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r["kind"] == "together" and r["source"] == "real pairs"]


def beside_clears(rows: Sequence[Row]) -> list[Row]:
    """The real pairs whose scores improve beside their clears."""
    return [r for r in real_pairs(rows) if r["gain_beside_clears"] > BESIDE]


def missed(rows: Sequence[Row]) -> list[Row]:
    """The real pairs on which the score test needs more than its goal."""
    return [r for r in real_pairs(rows) if r["units_ratio"] > GOAL]


def why(row: Row, delta: float = 0.10) -> str:
    """Why a pair misses the goal, in a word or two.

    Args:
        row: of kind "together".
        delta: smallest effect of interest of the clear test.
    """
    if row["clear_effect"] < delta and row["units_ratio_never_giving_up"] <= GOAL:
        return "the clear test gives up"
    if floors(row)["equal_power"] > row["goal_units"]:
        return "no test reaches it"
    if stake_needed(row) > 0.9:
        return "one bet alone reaches it"
    return "bold stakes reach it"


def table(rows: Sequence[Row]) -> list[str]:
    """The missed pairs as lines of a Markdown table."""
    lines = [
        "| pair | clear test: promoted, mean units | goal | score test | best bet | floor at the "
        "clear test's power | floor at power .9 | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in missed(rows):
        floor = floors(r)
        name = r["cell"].replace("ppo_", "").replace("k", "")
        lines.append(
            f"| {name} | {r['clear_test_promoted']:.3f}, {r['clear_test_units_mean']:.1f} "
            f"| {r['goal_units']:.1f} | {r['units_mean']:.1f} | {r['best_bet_units_mean']:.1f} "
            f"| {floor['equal_power']:.1f} | {floor['power_.9']:.1f} | {why(r)} |"
        )
    return lines


def count(rows: Sequence[Row]) -> str:
    """How many real pairs meet the goal, and beside it those that improve beside their clears."""
    pairs, beside = real_pairs(rows), beside_clears(rows)
    short = missed(rows)
    return (
        f"{len(pairs) - len(short)} of {len(pairs)} real pairs need at most {GOAL:g} of the clear "
        f"test's units; beside it, of the {len(beside)} whose scores improve beside their clears, "
        f"{sum(r not in short for r in beside)} do"
    )


def main() -> int:
    rows = json.loads((RESULTS / "gate_calibration.json").read_text())["rows"]
    print("\n".join(table(rows)))
    print(f"\n{count(rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
