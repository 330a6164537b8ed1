"""Each signal of the collapse detector against an independent computation from raw numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from mario.training.algorithms.contract import Algorithm
from mario.training.algorithms.factory import build_algorithm
from mario.training.callbacks import TrainerCallback
from mario.training.episodes import TrainingEpisode
from mario.training.sb3_vec_env import GameVecEnv, make_vec_env
from mario.training.signals import rollout_signals
from tests.support.training_runs import DQN, PPO, QRDQN, small_config


class Hooks:
    """Records the episodes and the arguments of each boundary."""

    def __init__(self) -> None:
        self.episodes: list[TrainingEpisode] = []
        self.boundaries: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def step(self, records: list[TrainingEpisode]) -> None:
        self.episodes += records

    def between_updates(self) -> None:
        pass

    def boundary(self, scalars: Any, rollout: Any, pace: Any) -> None:
        self.boundaries.append((dict(scalars), dict(rollout)))


@pytest.fixture(scope="module")
def ppo() -> Iterator[tuple[Algorithm, Hooks, dict[str, Any], GameVecEnv]]:
    """A PPO after one rollout and update, and what the update saw before it began."""
    # A linear range is 0 at the end of this run: what rounding changes would be clipped.
    config = small_config(
        PPO | {"n_epochs": 1, "batch_size": 64, "clip_range_schedule": "constant"}
    )
    env = make_vec_env(config, threads=1)
    algorithm = build_algorithm(config, env)
    model: Any = algorithm.model
    hooks, before = Hooks(), {}
    update = model.train

    def look() -> None:
        buffer = model.rollout_buffer
        for name in ("observations", "actions", "values", "log_probs", "returns", "advantages"):
            before[name] = getattr(buffer, name).copy()
        before["weights"] = {k: v.clone() for k, v in model.policy.state_dict().items()}
        before["clip_range"] = model.clip_range(model._current_progress_remaining)
        update()

    model.train = look
    model.learn(64, TrainerCallback(hooks, algorithm, 64))
    yield algorithm, hooks, before, env
    env.close()


def flat(values: np.ndarray) -> torch.Tensor:
    """(T, N, …) in the order (N, T, …), as stable-baselines3 shuffles them."""
    return torch.as_tensor(values.swapaxes(0, 1).reshape(-1, *values.shape[2:]))


def test_entropy_and_dominant_action(ppo: Any) -> None:
    algorithm, hooks, before, _ = ppo
    rollout = hooks.boundaries[-1][1]
    actions = before["actions"].astype(int).flatten()
    counts = [int((actions == action).sum()) for action in range(7)]
    assert rollout["dominant_action_share"] == max(counts) / 64
    # The entropy of a policy is E[-log π(a|s)] over what it did; its maximum is log 7.
    policy = algorithm.model.policy
    after = {k: v.clone() for k, v in policy.state_dict().items()}
    policy.load_state_dict(before["weights"])
    with torch.no_grad():
        features = policy.features_extractor(flat(before["observations"]))
        chances = torch.softmax(policy.action_net(features), dim=1)
    policy.load_state_dict(after)
    taken = chances.gather(1, flat(before["actions"]).long().reshape(-1, 1))
    assert rollout["entropy_ratio"] == pytest.approx(
        float(-taken.log().mean()) / math.log(7), rel=1e-4
    )


def test_kl_clip_fraction_explained_variance_and_value_loss(ppo: Any) -> None:
    """One epoch of one minibatch: the update begins where the rollout's policy stands."""
    _, hooks, before, _ = ppo
    scalars = hooks.boundaries[-1][0]
    returns, values = flat(before["returns"]), flat(before["values"])
    variance = 1 - float(torch.var(returns - values)) / float(torch.var(returns))
    assert scalars["train/explained_variance"] == pytest.approx(variance, rel=1e-3)
    # Before its first gradient step the policy is the rollout's: no divergence, nothing clipped.
    assert scalars["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert scalars["train/clip_fraction"] == 0.0
    mean_square = float(((returns - values) ** 2).mean())
    assert scalars["train/value_loss"] == pytest.approx(mean_square, rel=1e-3)


def test_kl_and_clip_fraction_of_a_second_epoch() -> None:
    """Schulman's k3 estimator, mean of (r − 1) − log r; the share of |r − 1| beyond the range."""
    config = small_config(
        PPO | {"n_epochs": 2, "batch_size": 64, "learning_rate": 0.02,
               "learning_rate_schedule": "constant", "clip_range_schedule": "constant"},
    )  # fmt: skip
    env = make_vec_env(config, threads=1)
    algorithm = build_algorithm(config, env)
    model: Any = algorithm.model
    hooks, steps, seen = Hooks(), [], {}

    def look(*_: object) -> None:
        steps.append({k: v.clone() for k, v in model.policy.state_dict().items()})

    handle = model.policy.optimizer.register_step_post_hook(look)
    update = model.train

    def before() -> None:
        seen.update({n: getattr(model.rollout_buffer, n).copy()
                     for n in ("observations", "actions", "log_probs")})  # fmt: skip
        update()

    model.train = before
    model.learn(64, TrainerCallback(hooks, algorithm, 64))
    handle.remove()
    env.close()
    model.policy.load_state_dict(steps[0])  # after the first of the two minibatches
    with torch.no_grad():
        _, log_probs, _ = model.policy.evaluate_actions(
            flat(seen["observations"]), flat(seen["actions"]).flatten()
        )
    log_ratio = log_probs - flat(seen["log_probs"])
    ratio = log_ratio.exp()
    second_kl = float(((ratio - 1) - log_ratio).mean())
    second_clipped = float(((ratio - 1).abs() > 0.2).float().mean())
    assert second_kl > 1e-4
    scalars = hooks.boundaries[-1][0]
    # stable-baselines3 logs the last epoch's KL, and the mean clip fraction over the epochs.
    assert scalars["train/approx_kl"] == pytest.approx(second_kl, rel=1e-2)
    assert scalars["train/clip_fraction"] == pytest.approx(second_clipped / 2, abs=1e-3)


def test_frozen_observations(ppo: Any) -> None:
    algorithm, _, _, _ = ppo
    buffer = algorithm.model.rollout_buffer
    kept = buffer.observations
    frames = kept.reshape(-1, 4, 84, 84)
    still = sum(bool((frame == frame[0]).all()) for frame in frames) / len(frames)
    assert rollout_signals(algorithm)["frozen_observation_share"] == pytest.approx(still)
    buffer.observations = np.repeat(kept[..., -1:, :, :], 4, axis=-3)
    assert rollout_signals(algorithm)["frozen_observation_share"] == 1.0
    buffer.observations = kept


@pytest.mark.parametrize("kind", [DQN, QRDQN], ids=["dqn", "qrdqn"])
def test_q_values_and_their_bound(kind: dict[str, Any]) -> None:
    config = small_config(kind | {"gamma": 0.9})
    env = make_vec_env(config, threads=1)
    algorithm = build_algorithm(config, env)
    model: Any = algorithm.model
    hooks = Hooks()
    model.learn(200, TrainerCallback(hooks, algorithm, 200))
    rollout = rollout_signals(algorithm)
    replay = model.replay_buffer
    rewards = replay.rewards[: replay.pos]
    # No return can be larger than the largest reward for ever: r (1 + γ + γ² + …) = r / (1 − γ).
    series = sum(float(np.abs(rewards).max()) * 0.9**k for k in range(1_000))
    assert rollout["q_bound"] == pytest.approx(series, rel=1e-5)
    observations = replay.observations[: replay.pos].reshape(-1, 4, 84, 84)
    with torch.no_grad():
        pictures = torch.as_tensor(observations)
        # A policy's value is the mean of its return's distribution.
        everywhere = model.q_net(pictures) if kind is DQN else (
            sum(quantiles for quantiles in model.quantile_net(pictures).unbind(1)) / 10
        )  # fmt: skip
    assert float(everywhere.min()) <= rollout["q_max"] <= float(everywhere.max())
    env.close()


@pytest.fixture
def acted() -> Iterator[Any]:
    """A DQN with given last actions: 4 games, 7 actions, room for 600 steps of each."""
    config = small_config(DQN | {"buffer_size": 2_400})
    env = make_vec_env(config, threads=1)
    algorithm = build_algorithm(config, env)
    model: Any = algorithm.model
    model._total_timesteps = 10_000

    def act(actions: Any, steps: int) -> float | None:
        replay = model.replay_buffer
        replay.pos = len(actions) // 4
        replay.actions[: replay.pos] = np.asarray(actions).reshape(-1, 4, 1)
        model.num_timesteps = steps
        share: float | None = rollout_signals(algorithm)["dominant_action_share"]
        return share

    act.model = model  # type: ignore[attr-defined]
    yield act
    env.close()


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [([630], 1.0), ([315, 315], 0.5), ([126, 504], 0.8), ([90] * 7, 1 / 7), ([700], 1.0)],
)
def test_dominant_action_without_exploration(
    acted: Any, chosen: list[int], expected: float
) -> None:
    """At 10% of 7 actions: of 700 taken 70 are random, 10 of each action."""
    actions = [action for action, count in enumerate(chosen) for _ in range(count)]
    if len(actions) < 700:  # else by chance none was random
        actions += list(range(7)) * 10
    assert acted(actions, 9_000) == pytest.approx(expected)


def test_dominant_action_while_exploration_falls(acted: Any) -> None:
    """From 1 to 0.1 in the first fifth, 2,000 steps; each action at the rate of its own time."""
    generator = np.random.default_rng(7)
    taken, rates = [], []
    for steps in range(400, 2_448, 4):  # 512 steps of each of the 4 games
        rates.append(max(1 - 0.9 * steps / 2_000, 0.1))
        greedy = 2 if generator.random() < 0.8 else 5
        for _ in range(4):
            random = generator.random() < rates[-1]
            taken.append(int(generator.integers(7)) if random else greedy)
    assert 0.3 < np.mean(rates) < 0.4
    share = acted(taken, 2_448)
    # 512 choices, of which a third is lost: a standard deviation of about 0.02.
    assert share == pytest.approx(0.8, abs=0.05)
    by_hand = (taken.count(2) / len(taken) - np.mean(rates) / 7) / (1 - np.mean(rates))
    assert share == pytest.approx(by_hand)


def test_no_dominant_action_while_most_actions_are_random(acted: Any) -> None:
    one = [3] * 2_048
    assert acted(one, 2_448) == 1.0
    assert acted(one, 2_100) is None  # of the last 2,048 a little over half, with 0.1 at the end
    acted.model.learning_starts = 9_000  # before which all are random, whatever the rate
    assert acted(one, 9_000) is None


def test_no_bound_of_q_values_before_a_reward() -> None:
    config = small_config(DQN)
    env = make_vec_env(config, threads=1)
    algorithm = build_algorithm(config, env)
    model: Any = algorithm.model
    model.learn(104, TrainerCallback(Hooks(), algorithm, 104))
    model.replay_buffer.rewards[:] = 0
    assert "q_bound" not in rollout_signals(algorithm)
    assert "q_max" in rollout_signals(algorithm)
    env.close()


@pytest.mark.parametrize(
    ("changes", "measured"),
    [
        ({"n_epochs": 1, "batch_size": 64}, False),
        ({"n_epochs": 2, "batch_size": 64}, True),
        ({"n_epochs": 1, "batch_size": 32}, True),
    ],
)
def test_kl_of_a_single_minibatch_is_no_signal(changes: dict[str, Any], measured: bool) -> None:
    """stable-baselines3 measures before each step: of one minibatch 0, whatever the step does."""
    config = small_config(PPO | changes)
    env = make_vec_env(config, threads=1)
    algorithm = build_algorithm(config, env)
    scalars = {"train/approx_kl": 0.0, "train/clip_fraction": 0.0, "train/value_loss": 0.5,
               "train/loss": 0.7, "train/explained_variance": math.nan}  # fmt: skip
    env.close()
    compared = {"approx_kl": 0.0, "clip_fraction": 0.0} if measured else {}
    assert algorithm.update_signals(scalars) == {
        "value_loss": 0.5, "explained_variance": None, **compared,
    }  # fmt: skip
