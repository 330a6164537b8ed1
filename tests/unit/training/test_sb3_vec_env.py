"""The VecEnv: seeds, records of every environment, terminal observations, exact snapshots."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from mario.config.experiment import ExperimentConfig, parse_config
from mario.errors import SaveStateError
from mario.evaluation.seeds import FAMILIES, unit_seed
from mario.game.batch.contract import EpisodeSpec
from mario.game.rng import derive_seed
from mario.training.episodes import TrainingEpisode
from mario.training.sb3_vec_env import GameVecEnv, episode_source, make_vec_env


def config(environments: int = 3, **game: object) -> ExperimentConfig:
    return parse_config(
        {
            "name": "try",
            "total_steps": 1_000,
            "environments": environments,
            "algorithm": {"n_steps": 10, "batch_size": environments * 10},
            "game": {"max_steps": 5, "no_op_max_frames": 3, **game},
            "seed": 7,
        },
        "here",
    )


@pytest.fixture
def env() -> Iterator[GameVecEnv]:
    opened = make_vec_env(config(), threads=1)
    yield opened
    opened.close()


def play(env: GameVecEnv, steps: int, seed: int) -> tuple[list[np.ndarray], list[TrainingEpisode]]:
    """Play random actions; returns rewards and the records of all environments."""
    generator = np.random.default_rng(seed)
    rewards, records = [], []
    for _ in range(steps):
        actions = generator.integers(0, env.action_space.n, env.num_envs)  # type: ignore[attr-defined]
        _, reward, dones, infos = env.step(actions)
        rewards.append(reward)
        records += [infos[i]["record"] for i in np.flatnonzero(dones)]
    return rewards, records


def test_training_episodes_share_no_seed_with_evaluation_units() -> None:
    """Over many runs: it is chance that keeps them apart, and three of eight carry a tag."""
    sources = [episode_source(seed, ("1-1",)) for seed in range(40)]
    episodes = [s(index, k).seed for s in sources for index in range(8) for k in range(150)]
    assert len(set(episodes)) == len(episodes)
    tagged = np.mean([1 <= seed >> 61 <= len(FAMILIES) for seed in episodes])
    # 48,000 episodes: .010 is more than four standard errors.
    assert tagged == pytest.approx(3 / 8, abs=0.01)
    units = {
        unit_seed(family, key, "1-1", index)  # type: ignore[arg-type]
        for family in FAMILIES
        for key in ("", "a" * 64)
        if key or family != "confirmation"
        for index in range(2_000)
    }
    assert not units & set(episodes)


def test_every_environment_is_recorded_with_its_own_seed(env: GameVecEnv) -> None:
    env.reset()
    rewards, records = play(env, 10, 0)
    found = {(r.env_index, r.episode_index): r for r in records}
    assert sorted(found) == [(e, k) for e in range(3) for k in range(2)]
    for (index, episode), record in found.items():
        assert record.seed == derive_seed(7, index, episode)
        assert record.level == "1-1"
        assert record.end == "truncated"
        assert record.length_steps == 5
        assert record.total_steps == 3 * 5 * (episode + 1)
        total = sum(reward[index] for reward in rewards[5 * episode : 5 * episode + 5])
        assert record.shaped_return == pytest.approx(total, abs=1e-4)
        assert len(record.state) == 13


def test_end_of_an_episode_keeps_its_last_picture(env: GameVecEnv) -> None:
    env.reset()
    for step in range(5):
        observations, _, dones, infos = env.step(np.full(3, 1))
        assert dones.all() == (step == 4)
    for index in range(3):
        last = infos[index]["terminal_observation"]
        assert last.shape == (4, 84, 84)
        # The next episode begins with its first picture four times.
        assert np.array_equal(observations[index][0], observations[index][3])
        assert not np.array_equal(last, observations[index])
        assert infos[index]["TimeLimit.truncated"] is True
        assert infos[index]["episode"]["l"] == 5


def test_the_caller_owns_returned_arrays(env: GameVecEnv) -> None:
    first = env.reset()
    kept = first.copy()
    env.step(np.full(3, 1))
    assert np.array_equal(first, kept)


def test_an_episode_played_alone_is_the_same() -> None:
    many, alone = make_vec_env(config(3), threads=1), None
    try:
        many.reset()
        _, records = play(many, 5, 1)
        wanted = next(record for record in records if record.env_index == 2)
        actions = np.random.default_rng(1).integers(0, 7, (5, 3))[:, 2]

        def only(_: int, __: int) -> EpisodeSpec:
            return EpisodeSpec("1-1", wanted.seed)

        alone = make_vec_env(config(1), only, threads=1)
        alone.reset()
        for action in actions:
            _, _, _, infos = alone.step(np.array([action]))
        assert infos[0]["record"].state == wanted.state
        assert infos[0]["record"].shaped_return == wanted.shaped_return
    finally:
        many.close()
        if alone is not None:
            alone.close()


def test_snapshot_restores_the_middle_of_episodes(env: GameVecEnv) -> None:
    env.reset()
    play(env, 7, 2)
    snapshot = env.snapshot()
    expected_rewards, expected_records = play(env, 9, 3)
    other = make_vec_env(config(), threads=1)
    try:
        observations = other.restore(snapshot)
        assert np.array_equal(observations, snapshot.observations)
        rewards, records = play(other, 9, 3)
        assert np.array_equal(np.array(rewards), np.array(expected_rewards))
        assert records == expected_records
        assert [r for r in records if r.env_index == 2]
    finally:
        other.close()


def test_snapshot_of_another_size_is_refused(env: GameVecEnv) -> None:
    env.reset()
    snapshot = env.snapshot()
    other = make_vec_env(config(2), threads=1)
    try:
        with pytest.raises(SaveStateError, match="3 environments"):
            other.restore(snapshot)
    finally:
        other.close()


def test_a_second_reset_starts_new_episodes(env: GameVecEnv) -> None:
    env.reset()
    env.reset()
    _, records = play(env, 5, 0)
    assert {record.episode_index for record in records} == {1}


def test_several_levels_take_turns() -> None:
    values = config(2).model_dump(mode="json") | {"task": "two", "levels": ["1-1", "5-1"]}
    opened = make_vec_env(parse_config(values, "here"), threads=1)
    try:
        opened.reset()
        _, records = play(opened, 10, 0)
        levels = {(r.env_index, r.episode_index): r.level for r in records}
        assert levels == {(0, 0): "1-1", (0, 1): "5-1", (1, 0): "5-1", (1, 1): "1-1"}
        assert {(r.level, r.state["world"]) for r in records} == {("1-1", 1), ("5-1", 5)}
    finally:
        opened.close()
