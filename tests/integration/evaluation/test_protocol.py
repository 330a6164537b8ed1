"""mario-eval-v1 on the real game: an episode depends on its unit and its policy only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mario.errors import ConfigError, EvaluationError
from mario.evaluation.protocol import play_units, protocol_game, record_frames
from mario.evaluation.seeds import schedule
from mario.game.smb.actions import action_set
from mario.jobs.policies import policy_from_artefact
from mario.policy.policy import RandomPolicy
from tests.support.evaluation_helpers import evaluate_units
from tests.support.onnx_networks import write_test_artefact

ACTIONS = action_set("simple")
POLICY = RandomPolicy(ACTIONS)
UNITS = [u for block in schedule(("1-1", "5-3"), "selection", units=12) for u in block]


def test_records_do_not_depend_on_the_number_of_environments_order_or_run() -> None:
    alone = evaluate_units(POLICY, UNITS, policy_digest="random", environments=1)
    for environments in (1, 2, 8):
        again = evaluate_units(
            POLICY, UNITS, policy_digest="random", environments=environments, threads=2
        )
        assert again == alone
    backwards = evaluate_units(POLICY, UNITS[::-1], policy_digest="random", environments=5)
    assert backwards[::-1] == alone


def test_records_of_an_exported_network_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    """Network answers may differ in their last bits by batch size; the records may not."""
    write_test_artefact(tmp_path / "policy", seed=3, selection="sample")
    loaded = policy_from_artefact(tmp_path / "policy")
    expected = evaluate_units(loaded.policy, UNITS[:8], policy_digest=loaded.digest, environments=1)
    for environments in (2, 8):
        again = policy_from_artefact(tmp_path / "policy")
        assert expected == evaluate_units(
            again.policy, UNITS[:8], policy_digest=again.digest, environments=environments
        )


def test_records_are_the_same_on_both_consoles() -> None:
    native = evaluate_units(POLICY, UNITS[:3], policy_digest="random", console="native")
    assert evaluate_units(POLICY, UNITS[:3], policy_digest="random", console="nes-py") == native


def test_different_seeds_give_different_trajectories() -> None:
    """In the older project all evaluation episodes were the same one."""
    records = evaluate_units(POLICY, UNITS, policy_digest="random")
    assert len({record.trajectory_hash for record in records}) == len(UNITS)


def test_a_greedy_policy_meets_noise_too() -> None:
    """Even a policy without any randomness plays different episodes under different seeds."""

    class AlwaysRunAndJump(RandomPolicy):
        def act(self, observations, generator=None, *, selection=None):  # type: ignore[no-untyped-def]
            output = super().act(observations, generator, selection="greedy")
            return type(output)(
                np.full(len(observations), 4, np.int64), output.probabilities, output.values
            )

    records = evaluate_units(AlwaysRunAndJump(ACTIONS), UNITS, policy_digest="greedy")
    hashes = {record.trajectory_hash for record in records}
    assert len(hashes) > len(UNITS) // 2


def test_every_environment_is_recorded_also_the_last() -> None:
    """Fails where only the first of N environments is read."""
    seen = list(play_units(POLICY, UNITS[:8], policy_digest="random", environments=8))
    assert sorted(record.unit for record in seen) == sorted(UNITS[:8])


def test_what_is_recorded_fits_together() -> None:
    for record in evaluate_units(POLICY, UNITS[:6], policy_digest="random"):
        assert sum(record.action_counts) == record.steps
        assert record.time_start in (200, 300, 400, 401)
        assert record.time_left <= record.time_start
        assert record.end_reason in ("death", "clock", "steps", "flag")
        assert 0 <= record.episode_score <= 0.5


def test_the_video_shows_the_recorded_episode() -> None:
    unit = UNITS[0]
    record = evaluate_units(POLICY, [unit], policy_digest="random")[0]
    frames = list(record_frames(POLICY, unit))
    assert len(frames) == record.steps + 1
    assert any(not np.array_equal(frames[0], frame) for frame in frames[1:])


def test_the_protocol_has_its_own_constants() -> None:
    game = protocol_game(POLICY)
    assert game.no_op_max_frames == 30
    assert game.sticky_probability == 0.25
    assert game.max_steps == 3000
    assert game.frame_skip == POLICY.frame_skip


@pytest.mark.parametrize(
    ("units", "environments", "error"),
    [
        ([("9-1", 1)], 1, ConfigError),
        ([("1-1", -1)], 1, EvaluationError),
        ([("1-1", 2**64)], 1, EvaluationError),
        ([("1-1", 1)], 0, EvaluationError),
    ],
)
def test_impossible_units_are_refused(units, environments, error) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match="expected"):
        list(play_units(POLICY, units, policy_digest="x", environments=environments))


def test_no_units_no_records() -> None:
    assert list(play_units(POLICY, [], policy_digest="x")) == []
