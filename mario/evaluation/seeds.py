"""Seeds of evaluation units, in three families that never overlap.

The families are disjoint because a tag in the seed's bits names the family:

    bit 63      always 0, so that a seed also fits a signed 64-bit SQL column
    bits 61-62  family: 1 selection, 2 screening, 3 confirmation; 0 is none
    bits 0-60   SHA-256 of (scheme, family, key, level, index)

Selection seeds choose checkpoints, screening seeds give a first impression, confirmation seeds
decide. The key of a confirmation seed is the test's identity: a digest over the challenger's
digest, the champion's, the levels and the rule.

- The seeds exist only once the weights are fixed, so no policy can have trained on them.
- The same test plays the same units again, so a second try is no second chance.
- A test against another champion, or under another rule, plays units that the challenger has not
  played. On the old units it would have been selected: a challenger that was lucky there would be
  lucky again.

The seed of a training configuration is a small number (below 2**61) and has tag 0. The seeds of
training *episodes* are derived from it over all 64 bits
(`mario.training.sb3_vec_env.episode_source`), so three of eight carry a family's tag by chance, and
only chance keeps them apart from units: a million episodes contain one of ten thousand given units
with probability 5e-10. Confirmation does not depend on that chance, since its seeds exist only
after training.

Usage:
    >>> for block in schedule(("1-1",), "confirmation", key="ab" * 32, units=2):
    ...     [unit.level for unit in block]
    ['1-1']
    ['1-1']
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from mario.config.experiment import ExperimentConfig
from mario.errors import EvaluationError

SEED_SCHEME = "mario-seeds-v1"


class SeedFamily(StrEnum):
    """What evaluation seeds are for; seeds of different families never overlap.

    The order is part of `SEED_SCHEME`: the position of a family is in its seeds' highest bits.
    """

    SELECTION = "selection"
    SCREENING = "screening"
    CONFIRMATION = "confirmation"


FAMILIES = tuple(SeedFamily)

_TAG_SHIFT = 61
_PAYLOAD_MASK = (1 << _TAG_SHIFT) - 1


class Unit(NamedTuple):
    """One unit of evaluation, as in `EpisodeRecord.unit`."""

    level: str
    seed: int


def unit_seed(family: SeedFamily, key: str, level: str, index: int) -> int:
    """Seed of the `index`-th unit of `level` in a family.

    Args:
        family: the family.
        key: for confirmation the test's identity, which depends on the challenger's digest; for
            the others any text, by convention empty.
        level: `"1-1"` … `"8-4"`.
        index: ≥ 0.

    Returns:
        An integer in [2**61, 2**63), different for different families by its bits.

    Raises:
        EvaluationError: unknown family, negative index, or a confirmation seed without key.
    """
    if family not in FAMILIES:
        raise EvaluationError(
            f"got seed family {family!r}; expected one of {', '.join(FAMILIES)}; correct the call"
        )
    if index < 0:
        raise EvaluationError(f"got unit index {index}; expected ≥ 0; correct the call")
    if family == SeedFamily.CONFIRMATION and not key:
        raise EvaluationError(
            "got no key for confirmation seeds; expected the test's, which holds the challenger's "
            "digest, so that the seeds exist only after its weights; pass the test's SHA-256"
        )
    text = "\0".join((SEED_SCHEME, family, key, level, str(index)))
    digest = hashlib.sha256(text.encode()).digest()
    payload = int.from_bytes(digest[:8], "big") & _PAYLOAD_MASK
    return ((FAMILIES.index(family) + 1) << _TAG_SHIFT) | payload


def _order_generator(family: SeedFamily, key: str) -> np.random.Generator:
    """Generator of the order of levels within blocks, fixed by family and key."""
    digest = hashlib.sha256("\0".join((SEED_SCHEME, "order", family, key)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def schedule(
    levels: Sequence[str],
    family: SeedFamily,
    *,
    key: str = "",
    units: int,
) -> Iterator[tuple[Unit, ...]]:
    """Yield blocks of units; every block holds each level once, in random order.

    The sequential test decides at the ends of blocks only: there it tests the average over levels,
    whatever the differences between them (see `betting.py`). The order within blocks is fixed by
    family and key, so the schedule is the same on every machine.

    Args:
        levels: the task's levels, each once, at least one.
        family: which seeds.
        key: see `unit_seed`.
        units: upper bound on units; the last block is the last complete one within it.

    Yields:
        Tuples of `len(levels)` units.

    Raises:
        EvaluationError: no level, a level twice, or fewer units than levels.
    """
    if not levels or len(set(levels)) != len(levels):
        raise EvaluationError(
            f"got levels {list(levels)}; expected at least one, each once; correct the task"
        )
    if units < len(levels):
        raise EvaluationError(
            f"got {units} units for {len(levels)} levels; expected at least one unit a level; "
            "raise max_units in the rule"
        )
    source = _order_generator(family, key)
    for block in range(units // len(levels)):
        order = [levels[i] for i in source.permutation(len(levels))]
        yield tuple(Unit(level, unit_seed(family, key, level, block)) for level in order)


def units_of(levels: Sequence[str], family: SeedFamily, key: str, count: int) -> tuple[Unit, ...]:
    """The first `count` units of a family, in whole blocks of all levels."""
    return tuple(itertools.chain(*schedule(levels, family, key=key, units=count)))


def selection_units(config: ExperimentConfig) -> tuple[Unit, ...]:
    """The units that checkpoints are chosen on, at least one for each level."""
    count = max(config.selection.units, len(config.level_names))
    return units_of(config.level_names, SeedFamily.SELECTION, "", count)
