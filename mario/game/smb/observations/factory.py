"""Look up a kind of observation by its name or its version."""

from __future__ import annotations

from functools import cache

from mario.config.observations import OBSERVATIONS
from mario.config.parts import load_part
from mario.errors import ConfigError
from mario.game.smb.observations.contract import ObservationKind


@cache
def observation_kind(name: str) -> ObservationKind:
    """Look up a kind by its name.

    Raises:
        ConfigError: no kind of that name is listed, or its module is missing.
    """
    if name not in OBSERVATIONS:
        raise ConfigError(
            f"unknown observation {name!r}: expected one of {', '.join(OBSERVATIONS)}; correct it"
        )
    kind: ObservationKind = load_part("mario.game.smb.observations", name, "OBSERVATION")
    return kind


def kind_of_version(version: str) -> ObservationKind:
    """Look up a kind by the version of its definition.

    Raises:
        ConfigError: no kind has it.
    """
    kinds = [observation_kind(name) for name in OBSERVATIONS]
    for kind in kinds:
        if kind.version == version:
            return kind
    raise ConfigError(
        f"unknown observation {version!r}: expected one of "
        f"{', '.join(kind.version for kind in kinds)}; use the release that trained the policy"
    )
