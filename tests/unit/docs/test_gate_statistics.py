"""The gate's pages quote the committed results file, and their arithmetic holds."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np
import pytest
from scipy import optimize
from scipy.special import zeta

from mario.evaluation.betting import log_wealth
from tests.support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import gate_floor
from gate_pools import load_pools, values_of
from gate_rows import CLEAR
from gate_simulation import fastest_bet, real_pairs, run_gate

Row = dict[str, Any]


ROWS: list[Row] = json.loads((ROOT / "benchmarks/results/gate_calibration.json").read_text())[
    "rows"
]
PAGE = " ".join((ROOT / "docs/reference/gate-statistics.md").read_text(encoding="utf-8").split())
TOGETHER = {r["cell"]: r for r in ROWS if r["kind"] == "together"}
#: The six real policies that clear .32 to .78.
CLEARING = ("ppo_0602k", "ppo_0700k", "ppo_0901k", "ppo_1003k", "ppo_1400k", "ppo_1703k")


def pair(a: str, b: str) -> Row:
    return TOGETHER[f"ppo_{a}k → ppo_{b}k"]


def small(value: float, digits: int = 2) -> str:
    """A share as the page writes it, halves rounded up: `.05`, `1.02`."""
    rounded = Decimal(str(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return str(rounded).removeprefix("0")


def span(values: Iterable[float], say: Callable[[float], str] = small) -> str:
    found = list(values)
    ends = (say(min(found)), say(max(found)))
    return " to ".join(dict.fromkeys(ends))


def whole(value: float) -> str:
    return f"{value:,.0f}"


def share(value: float) -> str:
    return small(value, 3)


def test_the_tenths_line_and_the_arithmetic_of_small_differences():
    line = 20 * zeta(1.6)
    assert f"evidence {line:.0f} instead of 20, the tenth {whole(line * 10**1.6)}." in PAGE
    champion = 0.05 / 1.05
    assert f".05 / 1.05 = {small(champion, 4)}" in PAGE
    assert f"{share((1 - champion) ** 60)} after 60 units" in PAGE
    assert f"ln 20 / ln 1.05 = {math.log(20) / math.log(1.05):.1f}" in PAGE
    # The boldest bet there is multiplies by 1.05; the mixture, which has less on it, comes later.
    assert 1.05**61 < 20 < 1.05**62
    assert log_wealth([0.05] * 61)[-1] < math.log(20)


def test_the_table_of_missed_pairs_is_what_the_results_file_gives():
    page = (ROOT / "docs/reference/gate-statistics.md").read_text(encoding="utf-8")
    assert "\n".join(gate_floor.table(ROWS)) in page
    assert gate_floor.count(ROWS) == (
        "7 of 20 real pairs need at most 0.8 of the clear test's units; beside it, of the 9 whose "
        "scores improve beside their clears, 7 do"
    )
    assert "**seven of the twenty** real pairs" in PAGE
    assert "of the nine pairs whose score also improves beside the clears, by more than .01" in PAGE
    verdicts = [gate_floor.why(row) for row in gate_floor.missed(ROWS)]
    counts = {verdict: verdicts.count(verdict) for verdict in verdicts}
    assert counts == {
        "bold stakes reach it": 1,
        "one bet alone reaches it": 1,
        "no test reaches it": 9,
        "the clear test gives up": 2,
    }


def test_floors_follow_from_the_pairs_own_distribution():
    """The growth in the results file is that of the 300 units of the pair, up to the simulation."""
    _, real = load_pools(np.random.default_rng(0))
    for row in gate_floor.missed(ROWS):
        sides = [values_of(real[name], "score") for name in row["cell"].split(" → ")]
        _, growth = fastest_bet(sides[1] - sides[0])
        assert gate_floor.growth_of(row) == pytest.approx(growth, rel=0.02)
        floors = gate_floor.floors(row)
        assert floors["equal_power"] <= floors["sure"] == pytest.approx(row["floor_units"])
        assert floors["power_.9"] == pytest.approx(0.793 * floors["sure"], rel=1e-3)
        if "floor_units_equal_power" in row:
            assert row["floor_units_equal_power"] == pytest.approx(floors["equal_power"])


def test_no_test_that_is_told_everything_undercuts_the_floor():
    """Wald's test between two coins, exactly: its mean units and power against the floor."""
    rate, alpha, beta = 0.7, 0.05, 0.1
    up, down = math.log(rate / 0.5), math.log((1 - rate) / 0.5)
    d = np.where(np.random.default_rng(3).random((4_000, 600)) < rate, 1.0, -1.0)
    path = np.cumsum(np.where(d > 0, up, down), axis=1)
    over, under = path >= math.log((1 - beta) / alpha), path <= math.log(beta / (1 - alpha))
    stopped = (over | under).argmax(axis=1)
    power = float(over[np.arange(len(d)), stopped].mean())
    growth = rate * up + (1 - rate) * down
    assert fastest_bet(d)[1] == pytest.approx(growth, rel=0.05)
    floor = gate_floor.floor_units(growth, power, alpha)
    assert floor < (stopped + 1).mean() < 1.3 * floor


def test_divergence_is_that_of_two_coins():
    assert gate_floor.divergence(1.0, 0.05) == pytest.approx(math.log(20))
    assert gate_floor.divergence(0.05, 0.05) == 0
    assert gate_floor.divergence(0.01, 0.05) == 0
    expected = 0.9 * math.log(18) + 0.1 * math.log(0.1 / 0.95)
    assert gate_floor.divergence(0.9, 0.05) == pytest.approx(expected)
    # A mixture that starts with w of its stake on a bet is log(1/w) behind it.
    row = pair("0401", "0602")
    late = row["goal_units"] - row["best_bet_units_mean"]
    needed = optimize.brentq(lambda w: -math.log(w) / gate_floor.growth_of(row) - late, 0.1, 1)
    assert gate_floor.stake_needed(row) == pytest.approx(needed)
    assert f"would have to have {small(needed)} of its stake" in PAGE


def test_the_numbers_beside_the_table():
    far = [r for r in gate_floor.missed(ROWS) if gate_floor.why(r) == "no test reaches it"]
    closest = min(far, key=lambda r: gate_floor.floors(r)["equal_power"] / r["goal_units"])
    assert closest is pair("0901", "1703")
    margin = gate_floor.floors(closest)["equal_power"] - closest["goal_units"]
    assert f"The closest, 0901 → 1703, by {margin:.1f} units, about two standard errors" in PAGE
    _, real = load_pools(np.random.default_rng(0))
    sides = [values_of(real[name], "clear") for name in closest["cell"].split(" → ")]
    units = run_gate(real_pairs(np.random.default_rng(1), *sides, 1_000, 2_000), CLEAR).units
    error = 0.8 * units.std() / math.sqrt(closest["trials"])
    assert 1.5 < margin / error < 2.5
    excluded = [r for r in far if gate_floor.floors(r)["power_.9"] > r["goal_units"]]
    assert excluded == [pair("0700", "0901"), pair("0700", "1003"), pair("0901", "1003")]
    assert "for three of them (0700 → 0901, 0700 → 1003 and 0901 → 1003)" in PAGE
    weak = [r for r in far if r["clear_effect"] < 0.1]
    assert weak == [pair("0700", "0901"), pair("0901", "1003")]
    assert {small(r["clear_effect"]) for r in weak} == {".09"}
    assert {small(r["clear_test_promoted"]) for r in weak} == {".88"}
    assert (
        "Two of the nine gain .09 in clears, less than the clear test's δ of .10 (power .88)"
        in (PAGE)
    )
    row = pair("0401", "0602")
    assert (
        f"needs {row['best_bet_units_mean']:.2f} units, and the goal is {row['goal_units']:.2f}"
        in PAGE
    )
    assert row["best_bet_theta"] == 0.99
    given_up = [pair("1003", "1703"), pair("1003", "1400")]
    for text, column, digits in (
        ("their clears gain {} and {}, less than", "clear_effect", 3),
        ("(power {} and {})", "clear_test_promoted", 2),
        ("the score test needs {} and {} of", "units_ratio_never_giving_up", 2),
    ):
        assert text.format(*(small(r[column], digits) for r in given_up)) in PAGE
    row = pair("0303", "0602")
    assert (
        f"needs {row['best_bet_units_mean']:.1f} units, and the goal is {row['goal_units']:.1f}."
        in PAGE
    )


def test_the_table_of_what_improves_together():
    begin = {name: row for name, row in TOGETHER.items() if row["source"] == "real pairs"}
    from_nothing = [n for n in begin if n.startswith(("random", "runner", "right", "ppo_0303k"))]
    groups = {
        "real pairs with .05 to .07 more clears, from next to none": [
            n for n in from_nothing if n.endswith("0401k")
        ],
        "real pairs from next to none to .32 clears": [
            n for n in from_nothing if n.endswith("0602k")
        ],
        "real pair from .06 to .32 clears": ["ppo_0401k → ppo_0602k"],
        "real pairs that begin with .32 clears or more": [
            n for n in begin if n.startswith(CLEARING)
        ],
        "only the clear rate improves (simulated)": [n for n in TOGETHER if "clears only" in n],
        "simulated: deaths later, clears faster": [n for n in TOGETHER if "deaths later" in n],
    }
    assert sorted(n for names in groups.values() for n in names) == sorted(TOGETHER)
    for name, cells in groups.items():
        rows = [TOGETHER[cell] for cell in cells]
        ratio, growth = (
            span(r[column] for r in rows) for column in ("units_ratio", "growth_ratio")
        )
        least = min(r["promoted"] for r in rows)
        promoted = (
            f"≥ {small(least, 4)}"
            if 0.99 < least < 1
            else span((r["promoted"] for r in rows), share)
        )
        assert f"| {name} | {promoted} | {ratio} | {growth} |" in PAGE


def test_the_tables_of_single_tests():
    for row in (r for r in ROWS if r["kind"] == "better"):
        before, after = row["cell"].removeprefix("clears ").split("→")
        line = (
            f"| {small(float(before))} → {small(float(after))} | {share(row['promoted'])} "
            f"| {whole(row['units_mean'])} | {whole(row['units_median'])} "
            f"| {whole(row['units_p90'])} | {row['fixed_units_at_power_.9']} "
            f"| {share(row['sprt_promoted'])}, {whole(row['sprt_units_mean'])} "
            f"| {share(row['savvi_promoted'])}, {whole(row['savvi_units_mean'])} |"
        )
        assert line in PAGE
    only = {r["cell"].removeprefix("+.05, "): r for r in ROWS if r["kind"] == "score only"}
    six = [only[name] for name in CLEARING]
    line = (
        f"| {span((r['promoted'] for r in six), share)} "
        f"| {span((r['units_mean'] for r in six), whole)} "
        f"| {span((r['units_median'] for r in six), whole)} "
        f"| {span((r['units_p90'] for r in six), whole)} |"
    )
    assert f"of six real policies that clear .32 to .78 {line}" in PAGE
    assert f"The six differ by {span(r['spread_of_differences'] for r in six)} in score" in PAGE
    fixed = [r["fixed_units_at_power_.9"] for r in six]
    assert f"needs {min(fixed)} to {max(fixed)} units for a power of .9" in PAGE
    covered = [r["coverage"] for r in ROWS if r["kind"] == "coverage"]
    assert f"together in {span(covered, share)} of the streams" in PAGE


def test_the_shares_of_equal_and_of_worse_challengers():
    equal, worse = ([r for r in ROWS if r["kind"] == kind] for kind in ("equal", "worse"))
    top = max(equal, key=lambda r: r["promoted"])
    assert f"| {share(top['promoted'])}, 95% interval up to {share(top['promoted_high'])} |" in PAGE
    top = max(worse, key=lambda r: r["promoted"])
    said = f"| {small(top['promoted'], 4)}, 95% interval up to {small(top['promoted_high'], 4)} |"
    assert said in PAGE
    (stream,) = (r for r in ROWS if r["kind"] == "stream")
    assert f"under the α budget | {share(stream['promoted'])} |" in PAGE


def test_the_account_tables():
    account = {r["cell"]: r for r in ROWS if r["kind"] == "account"}
    names = {1: "first", 2: "second", 3: "third", 5: "fifth", 10: "tenth"}
    for number, name in names.items():
        rows = [account[f"challenger {number}, clears {c}"] for c in ("0.5→0.7", "0.85→0.95")]
        promoted, units = (
            " / ".join(say(r[column]) for r in rows)
            for column, say in (("promoted", share), ("units_mean", whole))
        )
        assert f"| {name} | {small(rows[0]['alpha'], 4)} | {promoted} | {units} |" in PAGE
    for number in (1, 3, 10):
        prefix = f"challenger {number}, +.05, "
        rows = {c.removeprefix(prefix): r for c, r in account.items() if c.startswith(prefix)}
        six = [rows.pop(name) for name in CLEARING]
        few = list(rows.values())
        line = (
            f"| {names[number]} | ≥ {share(min(r['promoted'] for r in few))}, "
            f"{span((r['units_mean'] for r in few), whole)} "
            f"| {span((r['promoted'] for r in six), share)}, "
            f"{span((r['units_mean'] for r in six), whole)} |"
        )
        assert line in PAGE


def test_the_guide_quotes_the_results_file():
    guide = " ".join((ROOT / "docs/guides/gate.md").read_text(encoding="utf-8").split())
    cells = {(r["kind"], r["cell"]): r for r in ROWS}
    for cell, words in (("0.5→0.7", ".50 → .70"), ("0.85→0.95", ".85 → .95")):
        row = cells["better", f"clears {cell}"]
        measured = f"{share(row['promoted'])} | {whole(row['units_mean'])} |"
        assert f"| clears {words}, by `clear` | {measured}" in guide
    six = [cells["score only", f"+.05, {name}"] for name in CLEARING]
    promoted = span((r["promoted"] for r in six), share)
    units = span((r["units_mean"] for r in six), whole)
    assert f"policies that clear .32 to .78, by `score` | {promoted} | {units} |" in guide
    equal = cells["equal", "clears 0.85, independent"]
    assert f"`clear` | {share(equal['promoted'])} | {whole(equal['units_mean'])} |" in guide
    worse = cells["worse", "clears 0.85→0.5"]
    assert worse["promoted"] == 0
    assert f"| 0 of {whole(worse['trials'])} | {worse['units_mean']:.1f} |" in guide
    first, tenth = (
        whole(cells["account", f"challenger {k}, clears 0.5→0.7"]["units_mean"]) for k in (1, 10)
    )
    assert f"take {first} units on average for the first challenger and {tenth} for the" in guide
    real = [row for row in TOGETHER.values() if row["source"] == "real pairs"]
    ratios = span(r["units_ratio"] for r in real if r["cell"].startswith(CLEARING))
    assert f"needs {ratios} times the clear test's units" in guide
    line, next_line = (20 * zeta(1.6) * k**1.6 for k in (1, 2))
    assert f"2.2% (its threshold 1/α is {line:.1f}), the second .7% ({next_line:.1f})" in guide
