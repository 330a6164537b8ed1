"""The rule of the gate and the list of its guards: what must be shown for a promotion."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from mario.config.faults import parse_settings
from mario.config.section import PositiveInt, Probability, Section
from mario.errors import ConfigError

GATE = "mario-gate-v1"
GateMetric = Literal["score", "clear", "progress"]
METRICS: tuple[GateMetric, ...] = get_args(GateMetric)
#: Smallest effect of interest where the rule names none, in the metric's own unit.
DEFAULT_DELTA: Mapping[GateMetric, float] = types.MappingProxyType(
    {"clear": 0.10, "score": 0.03, "progress": 0.05}
)

#: The guards, in the order in which a verdict names them: modules of `mario.evaluation.guards`.
GUARDS = (
    "levels",
    "distinct_trajectories",
    "action_distribution",
    "clear_rate",
    "onnx_agreement",
    "inference_latency",
)
#: Guards that measure time. The first measurement of a test counts, or a slow moment could be
#: measured away; a repeated verdict need not have the same number.
TIMED_GUARDS = ("inference_latency",)
#: The guard that a verdict on a network needs: the policy that was trained is the one served.
NETWORK_GUARD = "onnx_agreement"


class GateRule(Section):
    """What must be shown for a promotion; two verdicts compare only under the same rule.

    Attributes:
        primary: what is tested. `score`: episode score of the protocol. `clear`: 1 when cleared.
            `progress`: share of the level covered, 1 when cleared; use it for policies that do not
            clear yet (score can then use only half of its range, and the test, which must allow
            for a rare clear of the champion, cannot see small gains in few units).
        alpha: chance, in (0, 1), that a challenger that is no better is ever promoted.
        beta: chance, in (0, 1), that a challenger better by `delta` or more is stopped as futile.
        delta: smallest effect of interest in the primary metric, in (0, 1); None means .10 for
            clear, .03 for score, .05 for progress.
        max_units: cap on units (pairs of episodes); blocks are whole, so with L levels the last
            multiple of L within it. The default is what a gain of .05 in the score takes between
            policies that clear half of their episodes; evidence or futility end most tests long
            before it.
        min_units: the test decides after this many units at the earliest, by the evidence at that
            time.
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
    """

    primary: GateMetric = "score"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.10
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_units: PositiveInt = 2_000
    min_units: PositiveInt = 1
    clear_rate_at_least: Annotated[float, Field(gt=0, lt=1)] | None = None
    clear_units: PositiveInt = 59
    clear_confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    level_alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    level_margin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    max_duplicate_share: Probability = 0.05
    max_logit_difference: Annotated[float, Field(gt=0)] = 1e-4
    max_action_share: Annotated[float, Field(gt=0, le=1)] = 0.99
    max_latency_ratio: Annotated[float, Field(gt=0)] = 2.0

    @model_validator(mode="after")
    def _units(self) -> Self:
        """Refuse a cap below the units that must be played."""
        if self.min_units > self.max_units:
            raise ValueError(
                f"gate.min_units: got {self.min_units}, expected at most max_units = "
                f"{self.max_units}"
            )
        if self.clear_rate_at_least is not None and self.clear_units > self.max_units:
            raise ValueError(
                f"gate.clear_units: got {self.clear_units}, expected at most max_units = "
                f"{self.max_units}, or the clear rate can never be shown"
            )
        return self

    @property
    def smallest_effect(self) -> float:
        """The smallest effect of interest in the primary metric."""
        return DEFAULT_DELTA[self.primary] if self.delta is None else self.delta

    @property
    def in_words(self) -> str:
        """One line: what is tested, at which error rates, on how many units."""
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
        """The same rule at the level that the α budget grants to one test."""
        return self.model_copy(update={"alpha": alpha})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the gate's version."""
        return {**self.model_dump(mode="json"), "version": GATE}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str) -> GateRule:
        """Read the form of `to_dict` back; missing keys mean their defaults.

        Args:
            data: as JSON gives it; numbers in quotes are refused.
            source: named in messages.

        Raises:
            ConfigError: an unknown key, a wrong type, an impossible value or another version.
        """
        values = dict(data)
        version = values.pop("version", GATE)
        if version != GATE:
            raise ConfigError(f"{source}: got the rule of {version!r}, expected one of {GATE}")
        return parse_settings(cls, values, source, strict=True)
