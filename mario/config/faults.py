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
        source: place to correct, for the error message.
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
    """Map names to sections: a setting's one section, or the members of its union."""
    if get_origin(annotation) is Annotated:
        return kinds_of(get_args(annotation)[0])
    members = get_args(annotation) or (annotation,)
    models = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
    return {_tag(model): model for model in models}


def _tag(model: type[BaseModel]) -> str:
    """Give the value of `name` or `kind` that selects a section from a union."""
    fields = model.model_fields
    field = fields.get("name", fields.get("kind"))
    return str((get_args(field.annotation) or ("",))[0]) if field else ""


@dataclass(frozen=True)
class _Place:
    """Where a fault is.

    Attributes:
        key: the key as written in the file, such as ``algorithm.gamma``.
        section: the section that should hold the key; None where no section does.
        kind: name that selected the section from `kinds`.
        kinds: the members of the union, by name.
    """

    key: str
    section: type[BaseModel] | None
    kind: str
    kinds: Kinds


def _place(location: Sequence[int | str], root: type[BaseModel]) -> _Place:
    """Resolve a fault's location, which also contains the names that selected a section."""
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
    """Yield a key that only other members of the union have, and which: such as ``ppo has``."""
    if fault["type"] == "extra_forbidden":
        others = [o for o, model in place.kinds.items() if fault["loc"][-1] in model.model_fields]
        if others:
            yield place.key, f"{' and '.join(others)} {'has' if len(others) == 1 else 'have'}"


def _describe_foreign(foreign: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Describe all keys of another member of the union in one sentence."""
    if foreign:
        name, first, other = foreign[0]
        keys = ", ".join(key for _, key, _ in foreign)
        yield (
            f"{keys}: unknown {'keys' if len(foreign) > 1 else 'key'} beside "
            f"{first.rpartition('.')[0]}.name {name}, got what only {other}; remove that, or "
            f"begin with a configuration of {name}"
        )


def _describe(fault: Any, place: _Place) -> str:
    """Describe one fault as `key: got …, expected …`; empty for a key of another member."""
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
