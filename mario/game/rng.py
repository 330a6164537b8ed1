"""The random generator of an episode: SplitMix64, equal in Python and in the native batch.

Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", OOPSLA; constants of
Vigna's public-domain `splitmix64.c`. Its state is one 64-bit word.
"""

from __future__ import annotations

_MASK = 0xFFFF_FFFF_FFFF_FFFF


class SplitMix64:
    """A stream of random 64-bit words.

    Attributes:
        state: the whole state, 0 ≤ state < 2**64.
    """

    def __init__(self, seed: int) -> None:
        """Start the stream at `seed` (taken modulo 2**64)."""
        self.state = seed & _MASK

    def next(self) -> int:
        """Draw the next word, uniform over 0 … 2**64 − 1."""
        self.state = (self.state + 0x9E37_79B9_7F4A_7C15) & _MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
        return z ^ (z >> 31)

    def below(self, bound: int) -> int:
        """Draw an integer, uniform over 0 … bound − 1 (1 ≤ bound ≤ 2**32).

        Scales the upper 32 bits (Lemire 2019, without rejection); the bias is below bound / 2**32.
        """
        return (self.next() >> 32) * bound >> 32

    def uniform(self) -> float:
        """Draw a float64, uniform over [0, 1) in steps of 2**-53."""
        return (self.next() >> 11) * 2.0**-53


def derive_seed(*parts: int) -> int:
    """Mix integers into one 64-bit seed; their order matters.

    Each part is mixed into the state, which is scrambled in between, so that seeds of different
    parts give practically independent streams.
    """
    generator = SplitMix64(0x6D61_7269_6F)  # "mario"
    word = 0
    for part in parts:
        generator.state = (generator.next() ^ (part & _MASK)) & _MASK
        word = generator.next()
    return word
