"""Read a YAML file with unique keys, and apply the overrides of `--set`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mario.errors import ConfigError


class _UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader, but a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build the mapping.

        Raises:
            ConstructorError: a key is given twice.
        """
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(
    path: Path | str, overrides: tuple[str, ...] = (), *, expected: str = "`name:`, `total_steps:`"
) -> dict[str, Any]:
    """Read a YAML file of keys and values.

    Args:
        path: the file.
        overrides: ``"key.sub=value"`` each, the value as YAML; they override the file.
        expected: keys that the error message asks for.

    Raises:
        ConfigError: the file cannot be read, or is no mapping of keys to values.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))) or "none there"
        raise ConfigError(
            f"{path}: no such file; expected a YAML with {expected} (found: {known})"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read as UTF-8 text ({error}); check the file"
        ) from None
    try:
        values = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{path}:{where} not valid YAML: {problem}; correct it") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: got {type(values).__name__} at the top, expected keys and values such as "
            f"{expected}"
        )
    for override in overrides:
        _apply(values, override)
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {override!r}: expected key=value, such as algorithm.gamma=0.9")
    *parents, last = key.strip().split(".")
    target = values
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override!r}: {parent} is a value, not a section with keys")
    try:
        target[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML; quote it") from None
