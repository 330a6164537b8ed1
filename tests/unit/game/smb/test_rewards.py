"""Compare the rewards with values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from mario.config.rewards import (
    GameReward,
    ProgressReward,
    RewardConfig,
    SpeedrunReward,
    StandardReward,
)
from mario.game.smb.end_reason import EndReason
from mario.game.smb.memory import STATE_DTYPE
from mario.game.smb.rewards import step_rewards


def reward(
    terms: RewardConfig,
    *,
    x: tuple[int, int] = (100, 100),
    time: tuple[int, int] = (300, 300),
    furthest: tuple[int, int] | None = None,
    end: EndReason = EndReason.RUNNING,
    game: int = 0,
    frame_skip: int = 4,
) -> float:
    before, after = np.zeros(1, STATE_DTYPE), np.zeros(1, STATE_DTYPE)
    before["x_px"], after["x_px"] = x
    before["time_left"], after["time_left"] = time
    reached = furthest or (x[0], max(x))
    return float(
        step_rewards(
            terms,
            before,
            after,
            furthest_before_px=np.array([reached[0]], np.int32),
            furthest_after_px=np.array([reached[1]], np.int32),
            end=np.array([end], np.int8),
            game_reward=np.array([game], np.int32),
            frame_skip=frame_skip,
        )[0]
    )


GAME, STANDARD = GameReward(), StandardReward()
SPEEDRUN, PROGRESS = SpeedrunReward(), ProgressReward()


def test_each_term_of_a_reward_can_be_set_alone() -> None:
    """The weight of the game's own reward and `new_x_only` are not settings."""
    for default in (STANDARD, SPEEDRUN, PROGRESS):
        for term in RewardConfig.model_fields.keys() - {"name"}:
            value: object = {7: 1.5} if term == "milestones" else 1.25
            changed = type(default).model_validate({term: value})
            assert changed == default.model_copy(update={term: value}) != default
        with pytest.raises(ValidationError, match="new_x_only"):
            type(default).model_validate({"new_x_only": True})


def test_a_term_that_was_left_out_is_written_as_null_and_read_as_the_default() -> None:
    written = ProgressReward(flag=10.0).model_dump(mode="json")
    assert written == {
        "name": "progress", "scale": 1.0, "forward_per_px": None, "backward_per_px": None,
        "idle_per_step": None, "time_per_unit": None, "flag": 10.0, "death": None,
        "milestones": None,
    }  # fmt: skip
    assert ProgressReward.model_validate(written) == PROGRESS
    assert ProgressReward.model_validate(written).model_dump(mode="json") == written


def test_speedrun_has_milestones_up_to_3200() -> None:
    assert [reward(SPEEDRUN, x=(x - 1, x)) > 1 for x in range(1, 4000)].count(True) == 8
    assert reward(SPEEDRUN, x=(3200, 3201)) == 1


def test_game_is_the_games_own() -> None:
    assert reward(GAME, x=(100, 110), game=9, end=EndReason.DEATH) == 9


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"x": (100, 110), "game": 9}, 9 + 1.0),
        ({"x": (100, 90), "game": -11}, -11 - 1.0),
        ({"game": -1}, -1 - 0.2),
        ({"x": (100, 101), "game": -25, "end": EndReason.DEATH}, -25 + 0.1 - 50),
        ({"x": (100, 101), "end": EndReason.TIME_OUT}, 0.1 - 50),
        ({"x": (100, 101), "end": EndReason.TRUNCATED}, 0.1),
        ({"x": (645, 655)}, 1.0 + 150),
        ({"x": (895, 905)}, 1.0 + 100),
        ({"x": (1195, 1200)}, 0.5 + 150),
        ({"x": (1599, 1600)}, 0.1 + 200),
        ({"x": (1999, 2000)}, 0.1 + 250),
        # Passing a milestone a second time pays nothing.
        ({"x": (645, 655), "furthest": (700, 700)}, 1.0),
    ],
)
def test_standard(case: dict[str, object], expected: float) -> None:
    assert reward(STANDARD, **case) == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"x": (100, 110), "game": 9}, 10.0),
        ({"x": (100, 90), "game": -11}, -4.0),
        ({}, -1.0),
        ({"x": (100, 101), "end": EndReason.DEATH}, 1 - 200),
        ({"x": (100, 101), "end": EndReason.FLAG}, 1 + 1000),
        ({"x": (3199, 3200)}, 1 + 400),
    ],
)
def test_speedrun_ignores_the_base_reward(case: dict[str, object], expected: float) -> None:
    assert reward(SPEEDRUN, **case) == pytest.approx(expected)  # type: ignore[arg-type]


def test_progress_pays_for_new_x_only() -> None:
    assert reward(PROGRESS, x=(100, 110)) == pytest.approx(1.0)
    assert reward(PROGRESS, x=(100, 110), furthest=(200, 200)) == 0.0
    assert reward(PROGRESS, x=(110, 100), furthest=(110, 110)) == 0.0
    assert reward(PROGRESS, time=(300, 299)) == pytest.approx(-0.1)
    assert reward(PROGRESS, end=EndReason.FLAG) == pytest.approx(10)
    assert reward(PROGRESS, end=EndReason.DEATH) == pytest.approx(-2.5)


def test_a_change_of_area_is_no_movement() -> None:
    assert reward(SPEEDRUN, x=(100, 900), furthest=(1000, 1000)) == -1.0
    assert reward(SPEEDRUN, x=(900, 100), furthest=(1000, 1000)) == -1.0
    assert reward(PROGRESS, x=(100, 900)) == 0.0
    assert reward(SPEEDRUN, x=(100, 120), furthest=(1000, 1000)) == 20.0
    assert reward(SPEEDRUN, x=(100, 121), furthest=(1000, 1000)) == -1.0
    assert reward(SPEEDRUN, x=(100, 106), furthest=(1000, 1000), frame_skip=1) == -1.0


def test_a_clock_that_jumps_up_costs_nothing() -> None:
    assert reward(PROGRESS, time=(10, 400)) == 0.0


def test_configuration_overrides_one_parameter_and_scales_the_sum() -> None:
    terms = ProgressReward(flag=77.0, scale=0.5)
    assert reward(terms, end=EndReason.FLAG) == pytest.approx(38.5)
    assert reward(terms, end=EndReason.DEATH) == pytest.approx(-1.25)
    milestones = StandardReward(milestones={101: 7.0})
    assert reward(milestones, x=(100, 101)) == pytest.approx(0.1 + 7)


def test_games_do_not_mix() -> None:
    before, after = np.zeros(3, STATE_DTYPE), np.zeros(3, STATE_DTYPE)
    after["x_px"] = [5, 0, 10]
    furthest = np.zeros(3, np.int32)
    got = step_rewards(
        SPEEDRUN,
        before,
        after,
        furthest_before_px=furthest,
        furthest_after_px=after["x_px"],
        end=np.array([0, EndReason.DEATH, 0], np.int8),
        game_reward=np.zeros(3, np.int32),
        frame_skip=4,
    )
    assert got.tolist() == [5.0, -201.0, 10.0]
    assert got.dtype == np.float64
