"""The rule of the gate: everything that is decided before the first unit is played.

A `GateRule` is frozen, small and plain, so that it can stand in an experiment's YAML, in the
verdict and in the store. Two verdicts can be compared only under the same rule.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from mario.errors import EvaluationError

GATE = "mario-gate-v1"
Metric = Literal["score", "clear", "progress"]
METRICS: tuple[str, ...] = get_args(Metric)

# Smallest effect of interest where the rule names none, in the metric's own unit.
DEFAULT_DELTA: Mapping[str, float] = types.MappingProxyType(
    {"clear": 0.10, "score": 0.03, "progress": 0.05}
)


@dataclass(frozen=True, slots=True)
class GateRule:
    """What must be shown for a promotion.

    Attributes:
        primary: what is tested. `score`: episode score of the protocol. `clear`: 1 when cleared.
            `progress`: share of the level covered, 1 when cleared; the one for policies that do
            not clear yet (score can then use only half of its range, and the test, which must
            allow for a rare clear of the champion, cannot see small gains in few units).
        alpha: chance, in (0, 1), that a challenger that is no better is ever promoted.
        beta: chance, in (0, 1), that a challenger better by `delta` or more is stopped as futile.
        delta: smallest effect of interest in the primary metric, in (0, 1); None takes .10 for
            clear, .03 for score, .05 for progress.
        max_units: cap on units (pairs of episodes); blocks are whole, so with L levels the last
            multiple of L within it. The default is what a gain of .05 in the score takes between
            policies that clear half of their episodes; evidence or futility end most tests long
            before it.
        min_units: no decision before so many units; then the evidence that is there by then
            decides, not what was there before.
        clear_rate_at_least: if set, the challenger's clear rate must be proven to be at least
            this by an exact one-sided bound on the first `clear_units` units.
        clear_units: units of that bound, fixed beforehand (59 of 59 proves .95 at 95%); with
            several levels the next number that makes whole blocks.
        clear_confidence: confidence of that bound.
        level_alpha: chance that the per-level guard (Holm) refuses a challenger that is nowhere
            worse by more than `level_margin`.
        level_margin: tolerated loss on a single level in the primary metric, in [0, 1).
        max_duplicate_share: share of a policy's episodes, in [0, 1], that may repeat a trajectory
            already seen under another seed.
        max_logit_difference: tolerated difference between ONNX and torch logits, > 0.
        max_action_share: greatest share of one single action over all steps, in (0, 1].
        max_latency_ratio: tolerated median inference time, as a multiple of the champion's, > 0.
        version: of the gate.
    """

    primary: Metric = "score"
    alpha: float = 0.05
    beta: float = 0.10
    delta: float | None = None
    max_units: int = 2_000
    min_units: int = 1
    clear_rate_at_least: float | None = None
    clear_units: int = 59
    clear_confidence: float = 0.95
    level_alpha: float = 0.05
    level_margin: float = 0.0
    max_duplicate_share: float = 0.05
    max_logit_difference: float = 1e-4
    max_action_share: float = 0.99
    max_latency_ratio: float = 2.0
    version: str = GATE

    def __post_init__(self) -> None:
        for f in fields(self):
            _check_type(f.name, getattr(self, f.name), typing.get_type_hints(GateRule)[f.name])
        rate = self.clear_rate_at_least
        checks = (
            ("primary", self.primary in METRICS, f"one of {', '.join(METRICS)}"),
            ("alpha", 0 < self.alpha < 1, "in (0, 1)"),
            ("beta", 0 < self.beta < 1, "in (0, 1)"),
            ("delta", self.delta is None or 0 < self.delta < 1, "in (0, 1)"),
            ("max_units", self.max_units >= 1, "≥ 1"),
            ("min_units", 1 <= self.min_units <= self.max_units, "between 1 and max_units"),
            ("clear_rate_at_least", rate is None or 0 < rate < 1, "in (0, 1)"),
            (
                "clear_units",
                self.clear_units >= 1 and (rate is None or self.clear_units <= self.max_units),
                "≥ 1 and ≤ max_units",
            ),
            ("clear_confidence", 0 < self.clear_confidence < 1, "in (0, 1)"),
            ("level_alpha", 0 < self.level_alpha < 1, "in (0, 1)"),
            ("level_margin", 0 <= self.level_margin < 1, "in [0, 1)"),
            ("max_duplicate_share", 0 <= self.max_duplicate_share <= 1, "in [0, 1]"),
            ("max_logit_difference", self.max_logit_difference > 0, "> 0"),
            ("max_action_share", 0 < self.max_action_share <= 1, "in (0, 1]"),
            ("max_latency_ratio", self.max_latency_ratio > 0, "> 0"),
            ("version", self.version == GATE, GATE),
        )
        for name, ok, expected in checks:
            if not ok:
                raise EvaluationError(
                    f"gate rule: got {name}={getattr(self, name)!r}; expected {expected}; "
                    "correct the rule"
                )

    @property
    def smallest_effect(self) -> float:
        """The smallest effect of interest in the primary metric."""
        return DEFAULT_DELTA[self.primary] if self.delta is None else self.delta

    @property
    def in_words(self) -> str:
        """One line: what is tested, against what, and for how long."""
        least = f"{self.min_units} to {self.max_units}" if self.min_units > 1 else self.max_units
        proven = (
            ""
            if self.clear_rate_at_least is None
            else f", clear rate proven to be at least {self.clear_rate_at_least:g}"
        )
        return (
            f"{self.primary}, smallest effect {self.smallest_effect:g}, alpha {self.alpha:.3g}, "
            f"beta {self.beta:g}, {'at most ' if self.min_units == 1 else ''}{least} units{proven}"
        )

    def with_alpha(self, alpha: float) -> GateRule:
        """The same rule at another level, as the ledger of a stream of challengers gives it."""
        return replace(self, alpha=alpha)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], source: str = "gate rule") -> GateRule:
        """Rule from a YAML or JSON mapping; unknown keys are refused.

        Args:
            data: keys as the attributes above; missing ones take the defaults.
            source: named in messages, e.g. `configs/demo.yaml: gate`.

        Raises:
            EvaluationError: unknown key, wrong type or impossible value.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise EvaluationError(
                f"{source}: got unknown key {unknown[0]!r}; expected one of "
                f"{', '.join(sorted(known))}; correct its spelling or remove it"
            )
        try:
            return cls(**data)
        except EvaluationError as error:
            raise EvaluationError(f"{source}: {error}") from error


def _check_type(name: str, value: Any, hint: Any) -> None:
    """Refuses a value whose type the field does not have (YAML gives strings easily)."""
    wanted = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in wanted and value is None:
        return
    if any(typing.get_origin(w) is Literal for w in wanted) or str in wanted:
        good, expected = isinstance(value, str), "a text"
    elif float in wanted:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        good, expected = number and math.isfinite(value), "a number"
    else:
        good, expected = isinstance(value, int) and not isinstance(value, bool), "an integer"
    if not good:
        raise EvaluationError(
            f"gate rule: got {name}={value!r} ({type(value).__name__}); expected {expected}; "
            "correct the rule"
        )
