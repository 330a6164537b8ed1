"""The verdict of the gate with every reason and number, as types, JSON and JSON Schema.

A verdict is complete: it has the policies, the rule, the units, the evidence after every block,
effects with confidence sequences, clear rates, every level and every guard. `to_dict` and
`from_dict` are inverse to each other; `VERDICT_SCHEMA` (JSON Schema 2020-12) describes the JSON;
`docs/guides/gate.md` explains how to read it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from mario.config.gate import METRICS, GateRule
from mario.config.identities import GATE_RULE_V1
from mario.config.levels import LEVEL_PATTERN
from mario.errors import ConfigError, EvaluationError
from mario.evaluation.betting import share_bounds
from mario.evaluation.decision import GateDecision

VERDICT = "mario-verdict-v1"


@dataclass(frozen=True, slots=True)
class GuardResult:
    """The result of one guard.

    Attributes:
        name: the guard, with the side where it judges each side.
        passed: False keeps the champion whatever the test says.
        value: the measured value.
        limit: its limit in the rule.
        detail: one sentence for people, with units.
    """

    name: str
    passed: bool
    value: float
    limit: float
    detail: str


@dataclass(frozen=True, slots=True)
class Effect:
    """Challenger minus champion in one metric, per unit, averaged over levels.

    Attributes:
        mean: average paired difference, in [-1, 1].
        lower: lower end of the confidence sequence, in [-1, 1].
        upper: upper end, in [-1, 1].
        end_error: chance that one end is ever on the wrong side of the true mean; the pair covers
            it at all times together with probability at least 1 - 2 end_error.
    """

    mean: float
    lower: float
    upper: float
    end_error: float


@dataclass(frozen=True, slots=True)
class PolicySummary:
    """One policy over the counted units.

    Attributes:
        digest: the policy's digest.
        clears: units cleared.
        clear_rate: share of units cleared, in [0, 1].
        clear_low: lower end of Clopper and Pearson's 95% interval. It assumes a number of units
            that was fixed beforehand; where the test stopped early, it covers less than 95%.
        clear_high: upper end.
        clear_low_anytime: lower end of the 95% confidence sequence, which is valid whenever the
            test stopped (`betting.share_bounds`).
        clear_high_anytime: upper end.
        mean_score: average episode score, in [0, 1].
        mean_progress: average share of the level covered, in [0, 1].
        mean_furthest_px: average furthest x, in pixels.
        median_steps: median length of an episode, in steps.
    """

    digest: str
    clears: int
    clear_rate: float
    clear_low: float
    clear_high: float
    clear_low_anytime: float
    clear_high_anytime: float
    mean_score: float
    mean_progress: float
    mean_furthest_px: float
    median_steps: float


@dataclass(frozen=True, slots=True)
class LevelResult:
    """One level in the primary metric.

    Attributes:
        level: `"1-1"` … `"8-4"`.
        units: units played on it.
        mean: average paired difference, in [-1, 1].
        lower: lower end of its own confidence sequence.
        upper: upper end.
        p_worse: anytime-valid p-value against "not worse by more than the margin".
        p_holm: the same after Holm's correction over levels.
        challenger_clears: units that the challenger cleared.
        champion_clears: units that the champion cleared.
    """

    level: str
    units: int
    mean: float
    lower: float
    upper: float
    p_worse: float
    p_holm: float
    challenger_clears: int
    champion_clears: int


@dataclass(frozen=True, slots=True)
class EvidencePoint:
    """The test after one block.

    Attributes:
        units: units so far.
        log_e_better: natural log of the evidence against "no better".
        log_e_futility: natural log of the evidence against "better by delta or more".
        mean: average paired difference so far.
        lower: lower end of the confidence sequence at this time.
        upper: upper end.
    """

    units: int
    log_e_better: float
    log_e_futility: float
    mean: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a gate test.

    Attributes:
        decision: only `promote` allows a promotion.
        reasons: sentences, the most important first.
        rule: the rule, with the level that the α budget granted.
        protocol: version of the protocol that the episodes were played under.
        levels: levels of the task.
        units: counted pairs.
        units_given: all pairs; those after the stop do not count.
        test_decision: decision of the sequential test alone, before the guards.
        e_better: greatest evidence against "no better" at a block's end that could promote (not
            before `min_units` and `clear_units`), or at the last one.
        e_futility: greatest evidence against "better by delta or more", likewise.
        p_value: anytime-valid, one over `e_better`, at most 1.
        p_permutation: p-value of a fixed-sample paired permutation test; secondary, ignores the
            stopping.
        effects: by metric.
        challenger: summary.
        champion: summary.
        level_results: one per level, in the task's order.
        guards: every guard that was run.
        path: the test after every block.
        version: of the verdict's layout.
    """

    decision: GateDecision
    reasons: tuple[str, ...]
    rule: GateRule
    protocol: str
    levels: tuple[str, ...]
    units: int
    units_given: int
    test_decision: GateDecision
    e_better: float
    e_futility: float
    p_value: float
    p_permutation: float
    effects: Mapping[str, Effect]
    challenger: PolicySummary
    champion: PolicySummary
    level_results: tuple[LevelResult, ...]
    guards: tuple[GuardResult, ...]
    path: tuple[EvidencePoint, ...]
    version: str = VERDICT

    @property
    def promoted(self) -> bool:
        """Whether the alias may move."""
        return self.decision == GateDecision.PROMOTE

    @property
    def effect(self) -> Effect:
        """Effect in the rule's primary metric."""
        return self.effects[self.rule.primary]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types, valid under `VERDICT_SCHEMA`."""
        data = asdict(self)
        data["rule"] = self.rule.to_dict()
        for name in ("reasons", "levels", "level_results", "guards", "path"):
            data[name] = list(data[name])
        data["effects"] = {name: asdict(effect) for name, effect in self.effects.items()}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verdict:
        """Read the form of `to_dict` back.

        Raises:
            EvaluationError: another layout, or fields missing or unknown.
        """
        if data.get("version") != VERDICT:
            raise EvaluationError(
                f"got a verdict of version {data.get('version')!r}; expected {VERDICT}; judge the "
                "records again with `mario gate`"
            )
        values = dict(data)
        try:
            values["rule"] = GateRule.from_dict(values["rule"], "verdict: rule")
            values["effects"] = {k: Effect(**v) for k, v in values["effects"].items()}
            for side in ("challenger", "champion"):
                values[side] = _summary(values[side], values["units"])
            values["level_results"] = tuple(LevelResult(**v) for v in values["level_results"])
            values["guards"] = tuple(GuardResult(**v) for v in values["guards"])
            values["path"] = tuple(EvidencePoint(**v) for v in values["path"])
            values["reasons"] = tuple(values["reasons"])
            values["levels"] = tuple(values["levels"])
            for name in ("decision", "test_decision"):
                values[name] = GateDecision(values[name])
            return cls(**values)
        except (KeyError, TypeError, AttributeError, ValueError, ConfigError) as error:
            raise EvaluationError(
                f"got a verdict that cannot be read ({error!r}); expected the fields of {VERDICT}; "
                "judge the records again with `mario gate`"
            ) from error


def _summary(values: Mapping[str, Any], units: int) -> PolicySummary:
    """Read one side; verdicts from before the confidence sequence get it computed."""
    lower, upper = share_bounds(values["clears"], units)
    added = {"clear_low_anytime": lower, "clear_high_anytime": upper}
    return PolicySummary(**{**added, **values})


_NUMBER: Final = {"type": "number"}
_UNIT: Final = {"type": "number", "minimum": 0, "maximum": 1}
_SIGNED: Final = {"type": "number", "minimum": -1, "maximum": 1}
_COUNT: Final = {"type": "integer", "minimum": 0}
_TEXT: Final = {"type": "string"}
_LEVEL: Final = {"type": "string", "pattern": LEVEL_PATTERN}


def _object(optional: Collection[str] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(set(properties) - set(optional)),
        "additionalProperties": False,
    }


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": dict(items)}


_EFFECT: Final = _object(mean=_SIGNED, lower=_SIGNED, upper=_SIGNED, end_error=_UNIT)
_AS_IF_FIXED: Final = {
    **_UNIT,
    "description": "End of Clopper and Pearson's 95% interval of the clear rate, as if the number "
    "of units had been fixed beforehand.",
}
_ANYTIME: Final = {
    **_UNIT,
    "description": "End of the 95% confidence sequence of the clear rate, which holds whenever the "
    "test stopped; a verdict of before it was reported has none.",
}
_SUMMARY: Final = _object(
    optional=("clear_low_anytime", "clear_high_anytime"),
    digest=_TEXT,
    clears=_COUNT,
    clear_rate=_UNIT,
    clear_low=_AS_IF_FIXED,
    clear_high=_AS_IF_FIXED,
    clear_low_anytime=_ANYTIME,
    clear_high_anytime=_ANYTIME,
    mean_score=_UNIT,
    mean_progress=_UNIT,
    mean_furthest_px={"type": "number", "minimum": 0},
    median_steps={"type": "number", "minimum": 0},
)

_RULE: Final = GateRule.model_json_schema()["properties"]

#: JSON Schema of `Verdict.to_dict()`.
VERDICT_SCHEMA: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": f"urn:{VERDICT}",
    "title": "Verdict of mario-gate-v1",
    **_object(
        version={"const": VERDICT},
        decision={"enum": [decision.value for decision in GateDecision]},
        test_decision={"enum": [decision.value for decision in GateDecision]},
        reasons={**_list(_TEXT), "minItems": 1},
        rule=_object(
            # A limit that was added later is missing in older verdicts.
            optional=_RULE.keys() - GATE_RULE_V1.keys(),
            **_RULE,
            version=_TEXT,
        ),
        protocol=_TEXT,
        levels={**_list(_LEVEL), "minItems": 1},
        units={"type": "integer", "minimum": 1},
        units_given={"type": "integer", "minimum": 1},
        e_better={"type": "number", "minimum": 0},
        e_futility={"type": "number", "minimum": 0},
        p_value=_UNIT,
        p_permutation={
            **_UNIT,
            "description": "Fixed-sample paired permutation test, as if the number of units had "
            "been fixed beforehand.",
        },
        effects=_object(**dict.fromkeys(METRICS, _EFFECT)),
        challenger=_SUMMARY,
        champion=_SUMMARY,
        level_results=_list(
            _object(
                level=_LEVEL,
                units=_COUNT,
                mean=_SIGNED,
                lower=_SIGNED,
                upper=_SIGNED,
                p_worse=_UNIT,
                p_holm=_UNIT,
                challenger_clears=_COUNT,
                champion_clears=_COUNT,
            )
        ),
        guards=_list(
            _object(
                name=_TEXT,
                passed={"type": "boolean"},
                value=_NUMBER,
                limit=_NUMBER,
                detail=_TEXT,
            )
        ),
        path=_list(
            _object(
                units=_COUNT,
                log_e_better=_NUMBER,
                log_e_futility=_NUMBER,
                mean=_SIGNED,
                lower=_SIGNED,
                upper=_SIGNED,
            )
        ),
    ),
}
