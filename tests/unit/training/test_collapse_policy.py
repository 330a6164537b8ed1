"""What each `collapse.action` allows after a collapse."""

from __future__ import annotations

import pytest

from mario.config.collapse import CollapseConfig
from mario.training.collapse_policy import CollapsePolicy


@pytest.mark.parametrize(
    ("action", "tolerates", "rolls_back"),
    [("warn", True, False), ("stop", False, False), ("rollback", False, True)],
)
def test_actions(action: str, tolerates: bool, rolls_back: bool) -> None:
    policy = CollapsePolicy(CollapseConfig.model_validate({"action": action}))
    assert (policy.tolerates_collapse, policy.may_roll_back) == (tolerates, rolls_back)


def test_rollbacks_are_counted_and_used_up() -> None:
    settings = CollapseConfig(action="rollback", max_rollbacks=2, rollback_learning_rate_factor=0.5)
    policy = CollapsePolicy(settings)
    assert policy.learning_rate_factor == 0.5
    assert policy.count_rollback(640) == "rolled back to the policy of 640 steps (1 of 2)"
    assert policy.may_roll_back
    assert policy.count_rollback(640) == "rolled back to the policy of 640 steps (2 of 2)"
    assert not policy.may_roll_back


def test_a_resumed_run_has_the_rollbacks_that_it_had() -> None:
    policy = CollapsePolicy(CollapseConfig(action="rollback", max_rollbacks=1))
    policy.rollbacks = 1
    assert not policy.may_roll_back
