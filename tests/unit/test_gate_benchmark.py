"""The benchmark's vectorised gate is the gate: same decisions and stops on single streams."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from evaluation_helpers import clear_pairs

from mario.evaluation.gate import GateRule, SequentialGate

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gate_calibration
from gate_simulation import mcnemar_power, paired_clears, paired_scores, run_gate


@pytest.mark.parametrize(("champion", "challenger"), [(0.5, 0.5), (0.5, 0.8), (0.8, 0.5)])
def test_vectorised_gate_agrees_with_the_sequential_one(champion, challenger):
    generator = np.random.default_rng(9)
    rule = GateRule(primary="clear", max_units=80)
    mine = generator.random((12, 80)) < challenger
    theirs = generator.random((12, 80)) < champion
    outcome = run_gate(mine.astype(float) - theirs, rule)
    for i in range(12):
        gate = SequentialGate(rule, ("1-1",))
        state = gate.feed(clear_pairs(list(zip(mine[i], theirs[i], strict=True))))
        expected = ("promote" if outcome.promoted[i]
                    else "reject" if outcome.rejected[i] else "inconclusive")  # fmt: skip
        assert (state.decision, state.units) == (expected, outcome.units[i])


def test_coupled_draws_keep_their_margins():
    generator = np.random.default_rng(1)
    for coupling in (0.0, 0.5, 1.0):
        d = paired_clears(generator, 0.3, 0.6, 400, 400, coupling)
        assert d.mean() == pytest.approx(0.3, abs=0.01)
    assert d.min() == 0.0  # full coupling: whoever is better never loses a unit
    pool = np.array([0.1, 0.2, 0.9])
    assert paired_scores(generator, pool, pool, 50, 50, 1.0).any() == np.False_
    assert paired_scores(generator, pool, pool + 0.05, 400, 400).mean() == pytest.approx(
        0.05, abs=0.01
    )


def test_mcnemar_power_agrees_with_simulation():
    generator = np.random.default_rng(2)
    from mario.evaluation.statistics import mcnemar_exact

    d = paired_clears(generator, 0.5, 0.7, 2000, 100)
    wins, losses = (d > 0).sum(axis=1), (d < 0).sum(axis=1)
    simulated = np.mean([mcnemar_exact(int(w), int(x)) <= 0.05
                         for w, x in zip(wins, losses, strict=True)])  # fmt: skip
    assert mcnemar_power(0.35, 0.15, 100, 0.05) == pytest.approx(simulated, abs=0.03)


def test_a_full_run_without_savvi_says_what_to_install(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "savvi" else found(name)
    )
    monkeypatch.setattr(sys, "argv", ["gate_calibration.py"])
    assert gate_calibration.main() == 2
    assert f"pip install {gate_calibration.SAVVI}" in capsys.readouterr().err
