"""The rewards against values worked out by hand."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from mario.config.rewards import RewardConfig
from mario.game.batch.contract import EndReason
from mario.game.smb.memory import STATE_DTYPE
from mario.game.smb.rewards import DEFAULTS, RewardTerms, reward_terms, step_rewards


def reward(
    terms: RewardTerms,
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


GAME, STANDARD = DEFAULTS["game"], DEFAULTS["standard"]
SPEEDRUN, PROGRESS = DEFAULTS["speedrun"], DEFAULTS["progress"]


def test_every_parameter_is_in_the_configuration() -> None:
    """… but the base reward's weight and what pays forward, which are what a name means."""
    for name in (f.name for f in fields(RewardTerms)):
        if name in ("game", "new_x_only"):
            continue
        value: object = {7: 1.5} if name == "milestones" else 1.25
        for reward_name in ("standard", "speedrun", "progress"):
            terms = reward_terms(RewardConfig(name=reward_name, **{name: value}))  # type: ignore[arg-type]
            assert getattr(terms, name) == value
            assert replace(terms, **{name: getattr(DEFAULTS[reward_name], name)}) == DEFAULTS[
                reward_name
            ]  # fmt: skip


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
    terms = reward_terms(RewardConfig(name="progress", flag=77.0, scale=0.5))
    assert reward(terms, end=EndReason.FLAG) == pytest.approx(38.5)
    assert reward(terms, end=EndReason.DEATH) == pytest.approx(-1.25)
    milestones = reward_terms(RewardConfig(name="standard", milestones={101: 7.0}))
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
