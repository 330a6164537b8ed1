"""Describe what is wrong with a configuration in one line: key, what was got, what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mario.config.levels import LEVELS_EXPECTED
from mario.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
Kinds = dict[str, type[BaseModel]]


def parse_settings(
    model: type[Model], values: dict[str, Any], source: str, *, strict: bool = False
) -> Model:
    """Validate plain values.

    Args:
        model: the section that they are for.
        values: as YAML, JSON or an argument list gives them.
        source: what the error message names as the place to correct.
        strict: refuse numbers in quotes and the like; for values that a program wrote.

    Raises:
        ConfigError: with the key, what was got and what is allowed, for every fault.
    """
    try:
        return model.model_validate(values, strict=strict or None)
    except ValidationError as error:
        faults = [(fault, _place(fault["loc"], model)) for fault in error.errors()]
        foreign = [(place.kind, key, other) for fault, place in faults
                   for key, other in _of_another_kind(fault, place)]  # fmt: skip
        described = [*_describe_foreign(foreign), *(_describe(*fault) for fault in faults)]
        raise ConfigError(f"{source}: {'; '.join(filter(None, described))}") from None


def kinds_of(annotation: Any) -> Kinds:
    """Map the name of each section that a setting can be to the section: one, or a union's."""
    if get_origin(annotation) is Annotated:
        return kinds_of(get_args(annotation)[0])
    members = get_args(annotation) or (annotation,)
    models = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
    return {_tag(model): model for model in models}


def _tag(model: type[BaseModel]) -> str:
    """The value of `name` or `kind` that chooses a section out of a union."""
    fields = model.model_fields
    field = fields.get("name", fields.get("kind"))
    return str((get_args(field.annotation) or ("",))[0]) if field else ""


@dataclass(frozen=True)
class _Place:
    """Where a fault is.

    Attributes:
        key: the key as the file has it, such as ``algorithm.gamma``.
        section: the section that should hold the key; None where no section does.
        kind: the name that chose the section out of `kinds`.
        kinds: the sections that could have stood in its place.
    """

    key: str
    section: type[BaseModel] | None
    kind: str
    kinds: Kinds


def _place(location: Sequence[int | str], root: type[BaseModel]) -> _Place:
    """Follow a fault's location, in which pydantic also writes the names that choose a section."""
    key: list[str] = []
    here: Any = root
    section, kind, kinds = None, "", {}
    for part in map(str, location):
        found = kinds_of(here)
        if len(found) > 1 and part in found:
            here, kind, kinds = found[part], part, found
            continue
        key.append(part)
        section = next(iter(found.values())) if len(found) == 1 else None
        if section is not None:
            kinds = kinds if section is kinds.get(kind) else {}
            field = section.model_fields.get(part)
            here = field.annotation if field else None
        else:
            here = get_args(here)[1] if get_origin(here) is dict else None
    return _Place(".".join(key), section, kind, kinds)


def _of_another_kind(fault: Any, place: _Place) -> Iterator[tuple[str, str]]:
    """Yield the key and who has it, such as `ppo has`, where a kind is given what another has."""
    if fault["type"] == "extra_forbidden":
        others = [o for o, model in place.kinds.items() if fault["loc"][-1] in model.model_fields]
        if others:
            yield place.key, f"{' and '.join(others)} {'has' if len(others) == 1 else 'have'}"


def _describe_foreign(foreign: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Say in one sentence that the settings are those of another kind."""
    if foreign:
        name, first, other = foreign[0]
        keys = ", ".join(key for _, key, _ in foreign)
        yield (
            f"{keys}: unknown {'keys' if len(foreign) > 1 else 'key'} beside "
            f"{first.rpartition('.')[0]}.name {name}, got what only {other}; remove that, or "
            f"begin with a configuration of {name}"
        )


def _describe(fault: Any, place: _Place) -> str:
    """Describe one fault as `key: got …, expected …`; nothing of what is said for several."""
    if any(_of_another_kind(fault, place)):
        return ""
    key, kind, context = place.key, fault["type"], fault.get("ctx", {})
    if kind == "value_error":
        text = str(context["error"])
        return text if text.startswith(key) else f"{key}: {text}"
    if kind == "union_tag_invalid":
        chooser = str(context["discriminator"]).strip("'")
        return f"{key}.{chooser}: got {context['tag']}, expected {context['expected_tags']}"
    if kind == "extra_forbidden":
        known = sorted(place.section.model_fields) if place.section else []
        near = difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        said = f"unknown key; {hint}"
    elif kind == "missing":
        said = "missing; expected a value, it has no default"
    elif kind == "union_tag_not_found":
        said = f"got no {context['discriminator']}, expected it to say which"
    elif key.startswith("levels") or (key == "task" and kind.startswith("string")):
        more = ', "all", or a name with `levels`' if key == "task" else ""
        said = f"got {fault['input']!r}, {LEVELS_EXPECTED}{more}"
    else:
        said = f"got {fault['input']!r}, {fault['msg'][0].lower()}{fault['msg'][1:]}"
    return f"{key}: {said}"
