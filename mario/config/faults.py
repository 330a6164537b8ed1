"""Says in one line what is wrong with a configuration: key, what was got, what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mario.config.algorithms import ALGORITHMS
from mario.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def parse_settings(model: type[Model], values: dict[str, Any], source: str) -> Model:
    """Validate plain values.

    Args:
        model: the section that they are for.
        values: as YAML, JSON or an argument list gives them.
        source: what the error message names as the place to correct.

    Raises:
        ConfigError: with the key, what was got and what is allowed, for every fault.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe_faults(error, model)}") from None


def describe_faults(error: ValidationError, root: type[BaseModel]) -> str:
    """Describe every fault that validation found, joined by semicolons.

    Args:
        error: what pydantic raised.
        root: the model that was validated; its keys are suggested for unknown ones.
    """
    faults = error.errors()
    described = [*_of_another_algorithm(faults), *(_describe(fault, root) for fault in faults)]
    return "; ".join(filter(None, described))


def _foreign(fault: Any) -> tuple[str, str, str] | None:
    """The algorithm, the key and the algorithm that has it, where one is set that another has."""
    loc = fault["loc"]
    if fault["type"] != "extra_forbidden" or len(loc) != 3 or loc[0] != "algorithm":
        return None
    name, key = str(loc[1]), str(loc[2])
    for other, model in ALGORITHMS.items():
        if other != name and key in model.model_fields:
            return name, key, other
    return None


def _of_another_algorithm(faults: Sequence[Any]) -> Iterator[str]:
    """Say in one sentence that the settings are those of another algorithm."""
    found = [foreign for foreign in map(_foreign, faults) if foreign is not None]
    if found:
        name, _, other = found[0]
        keys = ", ".join(f"algorithm.{key}" for _, key, _ in found)
        yield (
            f"{keys}: unknown {'keys' if len(found) > 1 else 'key'} beside algorithm.name {name}, "
            f"got what only {other} has; remove that, or begin with a configuration of {name}"
        )


def _describe(fault: Any, root: type[BaseModel]) -> str:
    """Say one fault as `key: got …, expected …`; nothing of what is said for several at once."""
    if _foreign(fault) is not None:
        return ""
    parts = [str(part) for part in fault["loc"] if part not in ALGORITHMS]
    key = ".".join(parts)
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        known = _keys_beside([str(part) for part in fault["loc"]], root)
        near = difflib.get_close_matches(parts[-1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if kind == "missing":
        return f"{key}: missing; expected a value, it has no default"
    if kind == "union_tag_invalid":
        return f"algorithm.name: got {context['tag']}, expected {context['expected_tags']}"
    message = fault["msg"][0].lower() + fault["msg"][1:]
    if key == "levels" or parts[0] == "levels" or (key == "task" and kind.startswith("string")):
        message = 'expected "1-1" to "8-4" (world 1-8, stage 1-4)' + (
            ', "all", or a name with `levels`' if key == "task" else ""
        )
    return f"{key}: got {fault['input']!r}, {message}"


def _keys_beside(parts: list[str], root: type[BaseModel]) -> list[str]:
    """Name the keys that are allowed where an unknown one was found."""
    model: Any = root
    for part in parts[:-1]:
        if part == "algorithm":
            return sorted(ALGORITHMS[parts[1]].model_fields)
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return sorted(model.model_fields)
