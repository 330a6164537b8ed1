"""The α budget: bounds false promotions over a whole stream of challengers.

A gate at level .05 promotes one in twenty equal challengers; after fifty, a false promotion is
almost certain. So the tests share the level: the k-th challenger since the last promotion is
tested at

    alpha_k = declared * k**-1.6 / zeta(1.6)

The levels sum to `declared`. Hence (union bound) the chance that *any* of the equal challengers
before the next promotion is promoted stays below it, for the next 50 as for the next 1000,
whatever was tested before. The exponent is that of Ramdas et al. 2018 ("SAFFRON", section 5).
A promotion restores the budget to `declared`: the new champion begins a new stream
(alpha-investing, Foster & Stine 2008, JRSS-B 70). The threshold of the e-process becomes
1 / alpha_k, which costs units, not validity: .0219 → 46, and the tenth challenger needs 1 820.

The ledger stores the budget's entries (`alpha_entries`: grant, spend, earn); here is the
arithmetic.

    >>> budget = AlphaBudget.open(0.05)
    >>> round(budget.next_alpha, 4)
    0.0219
    >>> budget = budget.spend()
    >>> round(budget.next_alpha, 4), round(budget.left, 4)
    (0.0072, 0.0281)
    >>> budget.earn().left
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
class AlphaBudget:
    """The budget of one task's stream of challengers.

    Attributes:
        declared: chance, in (0, 1), that any equal challenger of the stream is ever promoted.
        left: what may still be spent, in [0, declared].
        tests: challengers tested since the last promotion.
    """

    declared: float
    left: float
    tests: int

    @classmethod
    def open(cls, declared: float = 0.05) -> AlphaBudget:
        """A new budget.

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
        """Level of the next test, for `GateRule.with_alpha`; always > 0 and ≤ `left`."""
        return min(self.declared * spending_share(self.tests + 1), self.left)

    def spend(self) -> AlphaBudget:
        """The budget after the next test, whatever its result."""
        return AlphaBudget(self.declared, max(self.left - self.next_alpha, 0.0), self.tests + 1)

    def earn(self) -> AlphaBudget:
        """The budget after a promotion in the ledger; a verdict alone restores nothing."""
        return AlphaBudget(self.declared, self.declared, 0)


def replay(declared: float, earned: Iterable[bool]) -> AlphaBudget:
    """Compute the budget from the ledger's entries after its grant.

    Args:
        declared: the granted level.
        earned: for each entry in order, whether it restores the budget; otherwise it spends.
    """
    budget = AlphaBudget.open(declared)
    for earn in earned:
        budget = budget.earn() if earn else budget.spend()
    return budget
