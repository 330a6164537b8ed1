"""Identities: whether two runs, experiments, gate tests or sweeps are the same.

An identity is the SHA-256 of a JSON object that is built from a named list of fields. It decides
whether a checkpoint may be resumed, whether α has been spent on a test, and whether a worker may
join a sweep (docs/adr/0013). The list belongs to a version and never changes:

- A listed field enters with its value.
- A field that no list names was added later. It enters only where it is not at its default, so a
  new setting with a default leaves every identity as it was.
- A free field never enters: it changes nothing that the identity stands for.

The limit of this rule is a default that changes its meaning later. Then the list gets a second
version: new identities follow it, and stored ones are compared by their own version (see
`is_identity_of_run`).

A part with settings of its own, such as an algorithm, declares its list in `identity_fields`. The
identity of a stored evaluation is `mario.store.records.EvaluationKey`; that of a policy is the
digest of its manifest (docs/adr/0003).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mario.config.evaluation import PROTOCOL
from mario.config.gate import GATE, GateRule

#: Names of fields; below the name of a section, the names of its fields.
Fields = Mapping[str, "Fields"]


def fields(names: str = "", **sections: Fields) -> Fields:
    """List fields by their names, separated by spaces, and sections by their fields."""
    return {**{name: {} for name in names.split()}, **sections}


@dataclass(frozen=True)
class FieldList:
    """One version of an identity.

    Attributes:
        listed: fields that enter with their values.
        free: fields that never enter; a section without fields is free as a whole.
    """

    listed: Fields
    free: Fields

    def select(self, section: BaseModel) -> dict[str, Any]:
        """The fields of a section that belong to the identity, as JSON types."""
        return _select(section, self.listed, self.free)


def _select(section: BaseModel, listed: Fields, free: Fields) -> dict[str, Any]:
    """Select from a section and, with the lists below its name, from each section inside."""
    listed = getattr(section, "identity_fields", listed)
    plain = section.model_dump(mode="json")
    chosen = {}
    for name, field in type(section).model_fields.items():
        value, free_inside = getattr(section, name), free.get(name)
        if free_inside is not None and not free_inside:
            continue
        if name in listed or _matters(field, value):
            inside = listed.get(name, {}), free_inside or {}
            if isinstance(value, BaseModel):
                chosen[name] = _select(value, *inside)
            elif isinstance(value, Mapping) and _holds_sections(value):
                chosen[name] = {key: _select(part, *inside) for key, part in value.items()}
            else:
                chosen[name] = plain[name]
    return chosen


def _matters(field: FieldInfo, value: Any) -> bool:
    """Whether a field that no list names enters: it tells a kind, or is not at its default."""
    tells_kind = get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
    default = field.get_default(call_default_factory=True, validated_data={})
    return tells_kind or field.is_required() or value != default


def _holds_sections(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(part, BaseModel) for part in value.values())


def _digest(values: Any, separators: tuple[str, str] | None = None) -> str:
    text = json.dumps(values, sort_keys=True, separators=separators)
    return hashlib.sha256(text.encode()).hexdigest()


_COMPACT = (",", ":")

GATE_RULE_V1 = fields(
    "primary alpha beta delta max_units min_units clear_rate_at_least clear_units clear_confidence "
    "level_alpha level_margin max_duplicate_share max_logit_difference max_action_share "
    "max_latency_ratio"
)
_GAME_V1 = fields(
    "console actions frame_skip max_pool no_op_max_frames sticky_probability max_steps "
    "stuck_limit_steps",
    reward=fields(
        "name scale forward_per_px backward_per_px idle_per_step time_per_unit flag death "
        "milestones"
    ),
)
_TRAINING_V1 = fields(
    "task levels seed total_steps environments",
    algorithm=fields("name"),
    game=_GAME_V1,
    network=fields("features precision channels_last compile device threads"),
    selection=fields("every_steps units"),
    collapse=fields("action max_rollbacks rollback_learning_rate_factor"),
    gate=GATE_RULE_V1,
)
_CHECKPOINT_V1 = fields("every_steps keep")
_SINKS_V1 = fields("mlflow prometheus tensorboard wandb")
_PLACES_V1 = fields("engine workers scheduler")

#: Versions of a run's identity, the newest first. `evaluation.action_selection`, which decides what
#: a rollback returns to, stands in a checkpoint beside the identity.
_RUN = (FieldList(_TRAINING_V1, fields("name description sinks evaluation checkpoint")),)
_EXPERIMENT = FieldList(
    {
        **_TRAINING_V1,
        "checkpoint": _CHECKPOINT_V1,
        "sinks": _SINKS_V1,
        "evaluation": fields("screening_units environments action_selection"),
    },
    fields("name description", evaluation=_PLACES_V1),
)
_TEST = FieldList(GATE_RULE_V1, fields())
_SWEEP = FieldList(
    fields(
        space=fields("kind low high step log choices"),
        sampler=fields("startup_trials seed"),
        pruner=fields("name startup_trials warmup_steps reduction_factor"),
    ),
    fields("description experiment overrides trials heartbeat_seconds grace_seconds max_retries"),
)
_SWEPT_EXPERIMENT = FieldList(
    {
        **fields("name description"),
        **_EXPERIMENT.listed,
        "evaluation": {**_EXPERIMENT.listed["evaluation"], **_PLACES_V1},
    },
    fields(),
)


def identity_of_run(config: BaseModel) -> str:
    """Hash what must be the same for a run to be resumed: everything that can change a weight."""
    return _digest(_RUN[0].select(config))


def is_identity_of_run(stored: str, config: BaseModel) -> bool:
    """Whether a stored identity, of any version, is that of a run with this configuration."""
    return stored in {_digest(version.select(config)) for version in _RUN}


def identity_of_experiment(config: BaseModel) -> str:
    """Hash what can change an experiment's result.

    The name and the description do not count: the same experiment under another name is the same
    experiment. Nor does it matter on how many machines it is evaluated.
    """
    return _digest(_EXPERIMENT.select(config), _COMPACT)


def identity_of_test(
    challenger_digest: str,
    champion_digest: str,
    levels: Sequence[str],
    rule: GateRule,
) -> str:
    """Hash a gate test: two policies, their levels, the rule and the protocol.

    Args:
        challenger_digest: so that the test's units exist only once the weights are fixed.
        champion_digest: another champion is another test.
        levels: the task's levels, in order.
        rule: the rule as declared, before the α budget sets its level.
    """
    declared = {**_TEST.select(rule), "version": GATE}
    return _digest([challenger_digest, champion_digest, list(levels), declared, PROTOCOL])


def identity_of_sweep(settings: BaseModel, experiment: BaseModel) -> str:
    """Hash everything that a sweep's trials depend on; their number and patience do not count."""
    values = {**_SWEEP.select(settings), "experiment": _SWEPT_EXPERIMENT.select(experiment)}
    return _digest(values, _COMPACT)
