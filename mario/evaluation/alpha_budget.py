"""Alpha wealth: keeps a stream of challengers from promoting one by sheer number of tries.

A gate at level .05 promotes one in twenty equal challengers; after fifty, a false promotion is
almost certain. So the level itself is spent: the k-th challenger since the last promotion is
tested at

    alpha_k = declared * k**-1.6 / zeta(1.6)

The levels sum to `declared`, hence (union bound) the chance that *any* of the equal challengers
that come before the next promotion is promoted stays below it: of the next 50, the next 1000,
whatever was tried before. The exponent is the one of Ramdas et al. 2018 ("SAFFRON", section 5).
A promotion earns the account back to `declared`: the new champion begins a new stream
(alpha-investing, Foster & Stine 2008, JRSS-B 70). The e-process threshold becomes 1 / alpha_k,
which costs units, not validity: .0219 → 46, and the tenth challenger needs 1 820.

The store keeps the account (`alpha_entries`: grant, spend, earn); here is the arithmetic.

    >>> account = AlphaWealth.open(0.05)
    >>> round(account.next_alpha, 4)
    0.0219
    >>> account = account.spend()
    >>> round(account.next_alpha, 4), round(account.left, 4)
    (0.0072, 0.0281)
    >>> account.earn().left
    0.05
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from scipy.special import zeta

from mario.errors import EvaluationError

EXPONENT: Final = 1.6
_TOTAL: Final = float(zeta(EXPONENT))


def spending_share(k: int) -> float:
    """Share of the declared level that the k-th challenger (k ≥ 1) of a stream may use."""
    if k < 1:
        raise EvaluationError(f"got challenger number {k}; expected ≥ 1; count from one")
    return float(k**-EXPONENT) / _TOTAL


@dataclass(frozen=True, slots=True)
class AlphaWealth:
    """The account of one task's stream of challengers.

    Attributes:
        declared: chance, in (0, 1), that any equal challenger of the stream is ever promoted.
        left: what may still be spent, in [0, declared].
        tests: challengers tested since the last promotion.
    """

    declared: float
    left: float
    tests: int

    @classmethod
    def open(cls, declared: float = 0.05) -> AlphaWealth:
        """A new account.

        Raises:
            EvaluationError: `declared` outside (0, 1).
        """
        if not 0 < declared < 1:
            raise EvaluationError(
                f"got declared level {declared}; expected it in (0, 1); correct the rule"
            )
        return cls(declared, declared, 0)

    @property
    def next_alpha(self) -> float:
        """Level of the next test; give it to `GateRule.with_alpha`. Always > 0 and ≤ `left`."""
        return min(self.declared * spending_share(self.tests + 1), self.left)

    def spend(self) -> AlphaWealth:
        """The account after paying for the next test, whatever comes out of it."""
        return AlphaWealth(self.declared, max(self.left - self.next_alpha, 0.0), self.tests + 1)

    def earn(self) -> AlphaWealth:
        """The account after a promotion: the ledger's, not a verdict that nobody acts upon."""
        return AlphaWealth(self.declared, self.declared, 0)


def replay(declared: float, earned: Iterable[bool]) -> AlphaWealth:
    """Compute the account from the ledger's entries after its grant.

    Args:
        declared: the granted level.
        earned: for each entry in order, whether it refills the account; otherwise it pays a test.
    """
    account = AlphaWealth.open(declared)
    for earn in earned:
        account = account.earn() if earn else account.spend()
    return account
