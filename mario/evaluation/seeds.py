"""Where the seeds of evaluation units come from, so that judging never meets training.

Three families, disjoint from one another by construction, because the family's tag is in the seed's
own bits:

    bit 63    always 0, so that a seed also fits a signed 64-bit SQL column
    bits 61-62  family: 1 selection, 2 screening, 3 confirmation; 0 is no family's
    bits 0-60   SHA-256 of (scheme, family, key, level, index)

Selection seeds choose checkpoints, screening seeds give a quick look, confirmation seeds decide.
The key of a confirmation seed names the test: a digest over the challenger's digest, the
champion's, the levels and the rule. So the seeds exist only once the weights are fixed, and nobody
can have trained on them; asking for the same test again plays the same units, so that a second try
is not a second chance; and a test against another champion, or under another rule, plays units on
which the challenger was never seen. Had it the old ones, it would come to them already chosen by
them: a challenger that was lucky there goes on being lucky there.

The seed of a training configuration is a small number (below 2**61) and has tag 0. The seeds of
training *episodes* are derived from it over all 64 bits
(`mario.training.sb3_vec_env.episode_source`), so that three of eight carry a
family's tag by chance, and what keeps them apart from units is chance, too: a million episodes meet
one of ten thousand given units with probability 5e-10.
Confirmation needs no such chance, since its seeds exist only after training.

Usage by the runner:
    >>> for block in schedule(("1-1",), "confirmation", key="ab" * 32, units=2):
    ...     [unit.level for unit in block]
    ['1-1']
    ['1-1']
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

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


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit of evaluation: which level, which seed, and where it stands in the schedule."""

    level: str
    seed: int
    block: int
    position: int

    @property
    def key(self) -> tuple[str, int]:
        """(level, seed), as in `EpisodeRecord.unit`."""
        return (self.level, self.seed)


def unit_seed(family: SeedFamily, key: str, level: str, index: int) -> int:
    """Seed of the `index`-th unit of `level` in a family.

    Args:
        family: `selection`, `screening` or `confirmation`.
        key: the test's key for `confirmation` (must not be empty; it must depend on the
            challenger's digest); for the others any text, by convention empty.
        level: `"1-1"` … `"8-4"`.
        index: ≥ 0.

    Returns:
        An integer in [2**61, 2**63), different for different families by its bits.

    Raises:
        EvaluationError: unknown family, negative index, or a confirmation seed without digest.
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


def family_of(seed: int) -> SeedFamily | None:
    """Family whose tag a seed has, read from its bits; None for small seeds and above 2**63.

    It tells evaluation seeds apart. It does not tell whether a seed is one: the seeds of training
    episodes are 64 bits of any value.
    """
    tag = seed >> _TAG_SHIFT
    return FAMILIES[tag - 1] if 1 <= tag <= len(FAMILIES) else None


def order_generator(family: SeedFamily, key: str) -> np.random.Generator:
    """Generator of the order of levels within blocks, fixed by family and key."""
    digest = hashlib.sha256("\0".join((SEED_SCHEME, "order", family, key)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def schedule(
    levels: Sequence[str],
    family: SeedFamily,
    *,
    key: str = "",
    units: int,
    generator: np.random.Generator | None = None,
) -> Iterator[tuple[Unit, ...]]:
    """Blocks of units: every block holds each level once, in random order.

    The sequential test is judged at the ends of blocks: there, whatever the differences between
    levels, the average over levels is what is tested (see `betting.py`).

    Args:
        levels: the task's levels, each once, at least one.
        family: which seeds.
        key: see `unit_seed`.
        units: upper bound on units; the last block is the last complete one within it.
        generator: source of the order within blocks; None takes `order_generator(family, key)`,
            which gives the same schedule on every machine.

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
    source = order_generator(family, key) if generator is None else generator
    for block in range(units // len(levels)):
        order = source.permutation(len(levels))
        yield tuple(
            Unit(levels[i], unit_seed(family, key, levels[i], block), block, position)
            for position, i in enumerate(order)
        )


def selection_units(config: ExperimentConfig) -> list[tuple[str, int]]:
    """The units (level, seed) that checkpoints are chosen on, at least one for each level."""
    levels = config.level_names
    count = max(config.selection.units, len(levels))
    blocks = schedule(levels, SeedFamily.SELECTION, units=count)
    return [unit.key for block in blocks for unit in block]
