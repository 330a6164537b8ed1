"""The episode's generator gives the published values, and its draws are uniform."""

from __future__ import annotations

from collections import Counter

from mario.game.rng import SplitMix64, derive_seed


def test_splitmix64_gives_the_published_stream() -> None:
    """First outputs for seed 1234567, as in Rosetta Code's and Vigna's reference program."""
    generator = SplitMix64(1234567)
    assert [generator.next() for _ in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_below_and_uniform_stay_in_range_and_are_even() -> None:
    generator = SplitMix64(7)
    counts = Counter(generator.below(31) for _ in range(31_000))
    assert set(counts) == set(range(31))
    assert max(counts.values()) < 1200
    assert min(counts.values()) > 800
    draws = [generator.uniform() for _ in range(10_000)]
    assert all(0 <= draw < 1 for draw in draws)
    assert abs(sum(draw < 0.25 for draw in draws) / 10_000 - 0.25) < 0.02


def test_derived_seeds_depend_on_every_part_and_its_place() -> None:
    seeds = {derive_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125
    assert derive_seed(1, 2) != derive_seed(2, 1)
    assert derive_seed(3) == derive_seed(3)
