"""`mario-gate-v1`: a sequential test of whether the challenger is better than the champion.

Both policies play the same units. Two e-processes bet on the paired difference of the primary
metric (`betting.py`): one against "no better" (mean difference ≤ 0), one against "better by the
smallest effect of interest or more" (mean difference ≥ delta). At the end of every block:

* evidence against "no better" ≥ 1/alpha → the test says `promote`; a challenger that is no better
  is ever promoted with probability ≤ alpha, whenever one stops (Ville's inequality);
* evidence against "≥ delta" ≥ 1/beta → `reject`; a challenger that is better by delta or more is
  ever stopped so with probability ≤ beta;
* the cap is reached → `inconclusive`.

A rule that waits (`min_units`, `clear_units`) decides by the evidence at the end of the wait, or at
a later block's end. Evidence that was lost again during the wait does not count. So a promoted
challenger is ahead on the counted units, and the confidence interval lies above 0.

Then the guards run: one that fails turns `promote` into `reject`. Any decision but `promote` keeps
the champion. A tied unit multiplies the first evidence by exactly 1, so ties add no evidence.

Usage:
    >>> from mario.evaluation.seeds import schedule
    >>> rule = GateRule(primary="clear", max_units=60)
    >>> gate = SequentialGate(rule, levels=("1-1",))
    >>> blocks = schedule(gate.levels, "confirmation", key="ab" * 32, units=gate.cap)
    >>> len(next(blocks)), gate.state.done
    (1, False)

    while not gate.state.done:  play the next block(s) with both policies, `gate.feed(pairs)`
    verdict = decide(all_pairs, rule, levels, networks=…)

`decide` is a function of pairs in order of play and, for two guards, of measurements of the
networks. It runs the same `SequentialGate`, so stored records give the same verdict again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mario.config.gate import GUARDS, METRICS, NETWORK_GUARD, GateRule
from mario.config.parts import load_part
from mario.errors import EvaluationError
from mario.evaluation.betting import (
    EProcess,
    confidence_sequence,
    lower_bound,
    prior_for,
    share_bounds,
)
from mario.evaluation.decision import GateDecision
from mario.evaluation.guards.contract import Guard, GuardInput, Networks
from mario.evaluation.guards.levels import level_results
from mario.evaluation.records import EpisodeRecord, PairedUnit
from mario.evaluation.statistics import (
    FloatArray,
    clopper_pearson,
    paired_permutation,
    successes_needed,
)
from mario.evaluation.verdict import (
    Effect,
    EvidencePoint,
    GuardResult,
    PolicySummary,
    Verdict,
)


@dataclass(frozen=True, slots=True)
class GateState:
    """State of the sequential test after a block.

    Attributes:
        units: units counted.
        log_e_better: natural log of the evidence against "no better", now.
        log_e_futility: natural log of the evidence against "better by delta or more", now.
        decision: None while undecided.
        reason: one sentence.
    """

    units: int
    log_e_better: float
    log_e_futility: float
    decision: GateDecision | None
    reason: str

    @property
    def done(self) -> bool:
        """Whether no further unit will be counted."""
        return self.decision is not None


class SequentialGate:
    """The sequential test without the guards: feed pairs block by block until `state.done`.

    Args:
        rule: what must be shown.
        levels: the task's levels; a block is one unit of each.

    Attributes:
        rule: the rule.
        levels: the levels.
        cap: most units that can be counted, a multiple of the number of levels.
        bound_units: units of the clear-rate bound, whole blocks; 0 where the rule asks for none.
        state: the state after the last block.

    Raises:
        EvaluationError: no level, a level twice, or a cap below one block or below the units that
            the rule requires.
    """

    def __init__(self, rule: GateRule, levels: Sequence[str]) -> None:
        self.rule = rule
        self.levels = tuple(levels)
        if not self.levels or len(set(self.levels)) != len(self.levels):
            raise EvaluationError(
                f"got levels {list(levels)}; expected at least one, each once; correct the task"
            )
        self.cap = rule.max_units // len(self.levels) * len(self.levels)
        size = len(self.levels)
        # Whole blocks, so that the order within a block changes nothing.
        bound_units = 0 if rule.clear_rate_at_least is None else -(-rule.clear_units // size) * size
        if self.cap < max(1, bound_units, rule.min_units):
            raise EvaluationError(
                f"got max_units={rule.max_units} for {len(self.levels)} levels, which is "
                f"{self.cap} units in whole blocks; expected at least "
                f"{max(len(self.levels), bound_units, rule.min_units)}; raise max_units"
            )
        prior = prior_for(rule.primary)
        self._better = EProcess(0.0, prior)
        # "better by delta or more" is "mean of -d at most -delta".
        self._futile = EProcess(-rule.smallest_effect, prior)
        self.bound_units = bound_units
        self._clears_seen: list[bool] = []
        needed = (
            None
            if rule.clear_rate_at_least is None
            else successes_needed(bound_units, rule.clear_rate_at_least, rule.clear_confidence)
        )
        self._clears_needed = bound_units + 1 if needed is None else needed
        # Greatest evidence at the ends of blocks where a decision is possible; 0 at the start.
        self._better_max = self._futile_max = 0.0
        self.state = GateState(0, 0.0, 0.0, None, "nothing played yet")

    @property
    def log_e_better_max(self) -> float:
        """Greatest log evidence against "no better" at any block's end that could promote, or now.

        It is at least 0. Evidence while the rule waited does not count, since it decided nothing.
        """
        return max(self._better_max, self._better.log_e)

    @property
    def log_e_futility_max(self) -> float:
        """Greatest log evidence against "better by delta or more", likewise."""
        return max(self._futile_max, self._futile.log_e)

    def feed(self, pairs: Sequence[PairedUnit]) -> GateState:
        """Count whole blocks, in order, until the test has decided.

        Args:
            pairs: one or several blocks; within a block any order. Units after the decision, which
                a batched runner may have played, do not count.

        Returns:
            The new state.

        Raises:
            EvaluationError: not whole blocks with each level once.
        """
        size = len(self.levels)
        if len(pairs) % size:
            raise EvaluationError(
                f"got {len(pairs)} pairs; expected blocks of {size} (one unit of each level); "
                "feed complete blocks"
            )
        for start in range(0, len(pairs), size):
            if self.state.done:
                break
            block = pairs[start : start + size]
            if sorted(p.level for p in block) != sorted(self.levels):
                raise EvaluationError(
                    f"got a block with levels {[p.level for p in block]}; expected each of "
                    f"{list(self.levels)} once; keep the schedule's order"
                )
            self.count_block(
                np.array([p.difference(self.rule.primary) for p in block]),
                [p.challenger.cleared for p in block],
            )
        return self.state

    def count_block(self, differences: FloatArray, cleared: Sequence[bool]) -> GateState:
        """Count one block of numbers; simulations call it without pairs.

        Args:
            differences: float `(L,)` in [-1, 1], in the primary metric, one for each level.
            cleared: for each level whether the challenger cleared; for a rule with a clear rate.

        Returns:
            The new state; the old one when the test has decided already.
        """
        if self.state.done:
            return self.state
        self._better.update(differences)
        self._futile.update(-differences)
        self._clears_seen.extend(cleared)
        if self._better.units >= self.rule.min_units:
            self._futile_max = self.log_e_futility_max
            if self._better.units >= self.bound_units:
                self._better_max = self.log_e_better_max
        decision, reason = self._judge()
        self.state = GateState(
            self._better.units, self._better.log_e, self._futile.log_e, decision, reason
        )
        return self.state

    def _judge(self) -> tuple[GateDecision | None, str]:
        rule, units = self.rule, self._better.units
        counted = self._clears_seen[: self.bound_units]
        failures_allowed = self.bound_units - self._clears_needed
        if self.bound_units and len(counted) - sum(counted) > failures_allowed:
            return GateDecision.REJECT, (
                f"{sum(counted)} of {len(counted)} units cleared: a clear rate of at least "
                f"{rule.clear_rate_at_least} can no longer be proven on {self.bound_units} units"
            )
        if units < rule.min_units:
            return None, f"at least {rule.min_units} units are played"
        # The evidence now, not the greatest so far: a lead that is lost again does not promote.
        log_e = self._better.log_e
        better = log_e >= -math.log(rule.alpha)
        if better and units >= self.bound_units:
            return GateDecision.PROMOTE, (
                f"evidence {_e(log_e)} ≥ {1 / rule.alpha:.4g} against 'no better "
                f"in {rule.primary}' after {units} units"
            )
        if not better and self._futile.log_e >= -math.log(rule.beta):
            return GateDecision.REJECT, (
                f"evidence {_e(self._futile.log_e)} ≥ {1 / rule.beta:.4g} against 'better in "
                f"{rule.primary} by {rule.smallest_effect:g} or more' after {units} units"
            )
        if units >= self.cap:
            return GateDecision.INCONCLUSIVE, (
                f"cap of {self.cap} units reached with evidence {_e(log_e)} < "
                f"{1 / rule.alpha:.4g} against 'no better in {rule.primary}'"
            )
        return None, "undecided"


def decide(
    pairs: Sequence[PairedUnit],
    rule: GateRule,
    levels: Sequence[str] | None = None,
    *,
    networks: Networks | None = None,
    measured: Sequence[GuardResult] = (),
) -> Verdict:
    """Decide on pairs in order of play.

    The secondary permutation test draws from a generator that is derived from the units' seeds, so
    that the same records give the same verdict, digit for digit.

    Args:
        pairs: whole blocks in order of play; those after the stop are ignored.
        rule: what must be shown.
        levels: the task's levels; None takes those of the pairs, sorted.
        networks: measurements of the networks; None where the challenger is no network, and then a
            reason says that none was compared.
        measured: results of timed guards from an earlier judgement of the same test, which count.

    Returns:
        The verdict. When the pairs end before the test has decided, it is `inconclusive`.

    Raises:
        EvaluationError: no pairs, incomplete blocks, or several policies on one side.
    """
    _check_sides(pairs)
    task = tuple(sorted({p.level for p in pairs})) if levels is None else tuple(levels)
    gate = SequentialGate(rule, task)
    path = _play(gate, pairs)
    # No number of the verdict depends on the order within a block, not even by rounding.
    counted = _in_one_order(pairs[: gate.state.units], len(task))
    test_decision = gate.state.decision or GateDecision.INCONCLUSIVE
    results = level_results(counted, rule, task)
    guards = _run_guards(GuardInput(counted, rule, gate.bound_units, results, networks), measured)
    refused = test_decision == GateDecision.PROMOTE and not all(g.passed for g in guards)
    differences = {m: np.array([p.difference(m) for p in counted]) for m in METRICS}
    primary = differences[rule.primary]
    lower, upper = confidence_sequence(
        primary, rule.alpha, prior=prior_for(rule.primary), block=len(task)
    )
    effect = Effect(float(primary.mean()), float(lower[-1]), float(upper[-1]), rule.alpha)
    ended = f"the units ended at {len(pairs)}, before the test decided (cap {gate.cap})"
    return Verdict(
        decision=GateDecision.REJECT if refused else test_decision,
        reasons=_reasons(
            rule, gate.state.reason if gate.state.done else ended, guards, effect, refused=refused
        ),
        rule=rule,
        protocol=counted[0].challenger.protocol,
        levels=task,
        units=len(counted),
        units_given=len(pairs),
        test_decision=test_decision,
        e_better=_exp(gate.log_e_better_max),
        e_futility=_exp(gate.log_e_futility_max),
        p_value=math.exp(-gate.log_e_better_max),
        p_permutation=paired_permutation(
            primary, np.random.Generator(np.random.PCG64(_entropy(counted)))
        ),
        effects={
            **{m: _effect(d, rule.alpha, m) for m, d in differences.items()},
            rule.primary: effect,
        },
        challenger=summarise([p.challenger for p in counted]),
        champion=summarise([p.champion for p in counted]),
        level_results=results,
        guards=guards,
        path=_evidence(path, primary, lower, upper),
    )


def _check_sides(pairs: Sequence[PairedUnit]) -> None:
    """Refuse no pairs, or several policies on one side."""
    if not pairs:
        raise EvaluationError("got no units; expected at least one block; evaluate first")
    for side in ("challenger", "champion"):
        digests = {getattr(p, side).policy_digest for p in pairs}
        if len(digests) > 1:
            raise EvaluationError(
                f"got records of {len(digests)} policies as the {side}; expected one; do not mix "
                "evaluations"
            )


def _run_guards(given: GuardInput, measured: Sequence[GuardResult]) -> tuple[GuardResult, ...]:
    """Run every guard of the configuration; for a timed one the first measurement counts."""
    known = {result.name: result for result in measured}
    ran: list[GuardResult] = []
    for name in GUARDS:
        if name in known:
            ran.append(known[name])
            continue
        guard: Guard = load_part("mario.evaluation.guards", name, "guard")
        ran.extend(guard(given))
    return tuple(ran)


def _evidence(
    path: Sequence[GateState], primary: FloatArray, lower: FloatArray, upper: FloatArray
) -> tuple[EvidencePoint, ...]:
    """The test after every block, with the mean and its confidence sequence."""
    return tuple(
        EvidencePoint(
            state.units,
            state.log_e_better,
            state.log_e_futility,
            float(primary[: state.units].mean()),
            low,
            high,
        )
        for state, low, high in zip(path, lower.tolist(), upper.tolist(), strict=True)
    )


def summarise(records: Sequence[EpisodeRecord]) -> PolicySummary:
    """Summarise one policy over its counted episodes.

    The clear rate has two intervals: Clopper and Pearson's, which assumes that the number of
    episodes was fixed beforehand, and the confidence sequence's, which is valid whenever the test
    stopped.
    """
    clears = sum(r.cleared for r in records)
    low, high = clopper_pearson(clears, len(records))
    low_anytime, high_anytime = share_bounds(clears, len(records))
    return PolicySummary(
        digest=records[0].policy_digest,
        clears=clears,
        clear_rate=clears / len(records),
        clear_low=low,
        clear_high=high,
        clear_low_anytime=low_anytime,
        clear_high_anytime=high_anytime,
        mean_score=float(np.mean([r.episode_score for r in records])),
        mean_progress=float(np.mean([r.progress for r in records])),
        mean_furthest_px=float(np.mean([r.furthest_px for r in records])),
        median_steps=float(np.median([r.steps for r in records])),
    )


def _play(gate: SequentialGate, pairs: Sequence[PairedUnit]) -> list[GateState]:
    """Feed block by block and return every state."""
    path = []
    size = len(gate.levels)
    for start in range(0, len(pairs), size):
        path.append(gate.feed(pairs[start : start + size]))
        if gate.state.done:
            break
    return path


def _effect(differences: FloatArray, alpha: float, metric: str) -> Effect:
    """Effect in a metric that is not tested, with the confidence sequence after the last unit."""
    prior = prior_for(metric)
    lower = lower_bound(differences, alpha, prior=prior)
    upper = -lower_bound(-differences, alpha, prior=prior)
    return Effect(float(differences.mean()), lower, upper, alpha)


def _reasons(
    rule: GateRule,
    reason: str,
    guards: Sequence[GuardResult],
    effect: Effect,
    *,
    refused: bool,
) -> tuple[str, ...]:
    """Sentences, the decisive one first."""
    size = (
        f"{rule.primary} differs by {effect.mean:+.4f} per unit, between {effect.lower:+.4f} and "
        f"{effect.upper:+.4f} (each end at {1 - rule.alpha:.4g}, at any time)"
    )
    refusals = [
        f"guard {g.name} refuses: {g.detail} (limit {g.limit:g})" for g in guards if not g.passed
    ]
    unseen = (
        ()
        if any(g.name == NETWORK_GUARD for g in guards)
        else (
            f"no guard {NETWORK_GUARD} was run: whether the challenger answers as it was trained "
            "is not known",
        )
    )
    if refused:
        return (*refusals, reason, size, *unseen)
    return (reason, size, *(refusals or ["every guard passed"]), *unseen)


def _e(log_e: float) -> str:
    return f"{_exp(log_e):.3g}"


def _exp(log_e: float) -> float:
    """Exponential that stays a JSON number: e-values can exceed the range of a float."""
    return math.exp(min(log_e, 700.0))


def _in_one_order(pairs: Sequence[PairedUnit], size: int) -> list[PairedUnit]:
    """Sort each block by level: the order in which records are summed."""
    blocks = (pairs[start : start + size] for start in range(0, len(pairs), size))
    return [pair for block in blocks for pair in sorted(block, key=lambda pair: pair.level)]


def _entropy(pairs: Sequence[PairedUnit]) -> int:
    text = ",".join(f"{p.level}:{p.seed}" for p in pairs)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
