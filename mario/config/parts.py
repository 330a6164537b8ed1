"""Load the implementation of a part that a configuration names."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mario.errors import ConfigError


def load_part(package: str, name: str, attribute: str) -> Any:
    """Load one part of a known kind: an algorithm, a sink, a guard.

    The configuration lists the parts of a kind; the implementation of each is the module of that
    name (hyphens read as underscores) in the kind's package. The caller annotates the result with
    the kind's Protocol.

    Args:
        package: dotted name of the kind's package, such as ``mario.training.algorithms``.
        name: the part's name in the configuration.
        attribute: what the module must define, the same for all parts of the kind.

    Raises:
        ConfigError: the part is listed, but its module is missing or defines no such attribute.
    """
    module_name = f"{package}.{name.replace('-', '_')}"
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise  # a library that the part needs is not installed
        raise ConfigError(
            f"{name}: got no module {module_name}, expected the implementation of the part that "
            "the configuration lists; add it, or remove the name from the list"
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ConfigError(
            f"{name}: {module_name} defines no {attribute}, expected it as in the other modules "
            f"of {package}; define it"
        ) from None
