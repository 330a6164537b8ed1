"""Measures what the collapse detector looks at: all environments' episodes, networks, rollouts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.dqn import DQN
from stable_baselines3.ppo import PPO

from mario.game.console.contract import UInt8Array
from mario.game.smb.levels import level as find_level
from mario.training.collapse_detector import HealthSample, spearman
from mario.training.sb3_vec_env import EpisodeRecord

#: Episodes that means are taken over, everywhere.
WINDOW_EPISODES = 100
_RECENT_EPISODES = 20
_WINDOW_ENVIRONMENT_EPISODES = 2
_PROBE_OBSERVATIONS = 64
#: A unit is dormant when its mean activation is below this share of its layer's mean
#: (Sokar et al. 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning").
_DORMANT_TAU = 0.025
#: Above this share of random actions those that the network chose cannot be told from them.
_EXPLORATION_LIMIT = 0.5
#: The game's clock at the start of a level; to score training episodes as the protocol does.
_START_CLOCK = 400


class EpisodeWindow:
    """The last episodes of a run, of every environment."""

    def __init__(self, environments: int) -> None:
        """Start empty."""
        self.finished = 0
        self.seen = 0
        self.returns: deque[float] = deque(maxlen=WINDOW_EPISODES)
        self.furthest_px: deque[float] = deque(maxlen=WINDOW_EPISODES)
        self.scores: deque[float] = deque(maxlen=WINDOW_EPISODES)
        self._by_environment: list[deque[float]] = [
            deque(maxlen=_WINDOW_ENVIRONMENT_EPISODES) for _ in range(environments)
        ]
        self._begun_before: set[int] = set()

    def add(self, record: EpisodeRecord) -> None:
        """Take an episode in."""
        self.seen += 1
        if record.env_index in self._begun_before:
            self._begun_before.remove(record.env_index)
            return
        self.returns.append(record.shaped_return)
        self.furthest_px.append(float(record.furthest_x_px))
        self.scores.append(_score(record))
        self._by_environment[record.env_index].append(float(record.furthest_x_px))

    def roll_back(self) -> None:
        """Forget the episodes of the policy that is gone, those that still run included.

        How many there were stays known. The scores stay as well: where they choose the best
        checkpoint, the mean of the first few episodes after a rollback would be chance.
        """
        for window in (self.returns, self.furthest_px, *self._by_environment):
            window.clear()
        self._begun_before = set(range(len(self._by_environment)))

    def environments_furthest_px(self) -> tuple[float, ...]:
        """Mean furthest x of each environment's last episodes, NaN before its first."""
        return tuple(float(np.mean(v)) if v else math.nan for v in self._by_environment)

    def mean_return(self) -> float | None:
        """Mean shaped return; None before the first episode."""
        return _mean(self.returns)

    def mean_furthest_px(self) -> float | None:
        """Mean furthest x; None before the first episode."""
        return _mean(self.furthest_px)

    def recent(self) -> tuple[list[float], list[float]]:
        """Returns and furthest x of the last 20 episodes (all, while there are fewer)."""
        return list(self.returns)[-_RECENT_EPISODES:], list(self.furthest_px)[-_RECENT_EPISODES:]

    def mean_score(self) -> float | None:
        """Mean score; None before the first episode."""
        return _mean(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types."""
        return {
            "finished": self.finished,
            "seen": self.seen,
            "returns": list(self.returns),
            "furthest_px": list(self.furthest_px),
            "scores": list(self.scores),
            "by_environment": [list(values) for values in self._by_environment],
            "begun_before": sorted(self._begun_before),
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go on from :meth:`to_dict`."""
        self.finished, self.seen = values["finished"], values["seen"]
        for name in ("returns", "furthest_px", "scores"):
            window = getattr(self, name)
            window.clear()
            window.extend(values[name])
        for window, saved in zip(self._by_environment, values["by_environment"], strict=True):
            window.clear()
            window.extend(saved)
        # Checkpoints of earlier versions do not have it.
        self._begun_before = set(values.get("begun_before", ()))


class GradientMeter:
    """Measures the gradient's norm before stable-baselines3 clips it, and guards each update.

    Hooks on the parameters see every gradient as backward finishes it; a hook on the optimizer
    sees that an update is about to happen.
    """

    def __init__(self, model: BaseAlgorithm, guard: Callable[[float], None]) -> None:
        """Hook into the model.

        Args:
            model: the algorithm.
            guard: called with each update's norm before the weights change; may raise.
        """
        self._squares: list[torch.Tensor] = []
        self._norms: list[float] = []
        self._guard = guard
        policy: Any = model.policy
        trained = {id(p): p for group in policy.optimizer.param_groups for p in group["params"]}
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._see)
            for parameter in trained.values()
        ]
        self._handles.append(policy.optimizer.register_step_pre_hook(self._before_step))

    def take(self) -> float | None:
        """Give the mean norm since the last call; None where there was no update.

        Of an update that the guard refused there is none: its weights did not change.
        """
        norms, self._norms = self._norms, []
        return float(np.mean(norms)) if norms else None

    def close(self) -> None:
        """Take the hooks out."""
        for handle in self._handles:
            handle.remove()

    def _see(self, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            self._squares.append(parameter.grad.detach().pow(2).sum())

    def _before_step(self, *_: object) -> None:
        norm = float(torch.stack(self._squares).sum().sqrt()) if self._squares else 0.0
        self._squares = []
        self._guard(norm)
        self._norms.append(norm)


def dormant_share(model: BaseAlgorithm, observations: UInt8Array) -> float | None:
    """Measure the share of units that hardly ever fire.

    Args:
        model: PPO or DQN on this project's network.
        observations: uint8 (N, 4, 84, 84), recent ones.

    Returns:
        0 … 1 in the layer that has most of them (a network is as dead as its deadest layer);
        None for a network that cannot be looked into.
    """
    policy: Any = model.policy
    extractor: Any = model.q_net.features_extractor if isinstance(model, DQN) else getattr(
        policy, "features_extractor", None
    )  # fmt: skip
    if not hasattr(extractor, "activations"):
        return None
    with torch.no_grad():
        layers = extractor.activations(torch.as_tensor(observations, device=model.device))
    worst = 0.0
    for layer in layers:
        # A unit is a channel of a convolution, or an output of a dense layer.
        activity = layer.abs().transpose(0, 1).flatten(1).mean(dim=1)
        mean = float(activity.mean())
        score = activity / mean if mean > 0 else torch.zeros_like(activity)
        worst = max(worst, float((score <= _DORMANT_TAU).float().mean()))
    return worst


def make_sample(
    model: BaseAlgorithm,
    window: EpisodeWindow,
    *,
    update: int,
    target_steps: int,
    gradient_norm: float | None,
    scalars: Mapping[str, Any],
    rollout: Mapping[str, Any],
    since_update: float | None = None,
) -> HealthSample:
    """Put together what an update looked like.

    Args:
        model: the algorithm, after the update.
        window: the last episodes.
        update: its number, from 1.
        target_steps: agent steps of the whole run.
        gradient_norm: from :class:`GradientMeter`.
        scalars: what stable-baselines3 logged in `train()`.
        rollout: from :func:`rollout_signals`.
        since_update: seconds since the update before, where that is too long.
    """
    returns, furthest = window.recent()
    enough = len(returns) == _RECENT_EPISODES
    loss = scalars.get("train/value_loss", scalars.get("train/loss"))
    # Both are measured before each minibatch's step: of a single one they are 0 whatever it does.
    compared = not isinstance(model, PPO) or _minibatches(model) > 1
    finite = all(math.isfinite(value) for name, value in scalars.items()
                 if name.startswith("train/") and name != "train/explained_variance")  # fmt: skip
    return HealthSample(
        update=update,
        total_steps=model.num_timesteps,
        progress=min(model.num_timesteps / target_steps, 1.0),
        mean_return=window.mean_return(),
        mean_furthest_px=window.mean_furthest_px(),
        environments_furthest_px=window.environments_furthest_px(),
        recent_return=float(np.mean(returns)) if enough else None,
        recent_furthest_px=float(np.mean(furthest)) if enough else None,
        return_progress_correlation=spearman(returns, furthest) if enough else None,
        episodes_finished=window.finished,
        episodes_seen=window.seen,
        approx_kl=_scalar(scalars, "train/approx_kl") if compared else None,
        clip_fraction=_scalar(scalars, "train/clip_fraction") if compared else None,
        explained_variance=_finite(_scalar(scalars, "train/explained_variance")),
        value_loss=None if loss is None else float(loss),
        gradient_norm=gradient_norm,
        seconds_since_update=since_update,
        non_finite=not finite or not math.isfinite(gradient_norm or 0.0),
        **rollout,
    )


def rollout_signals(model: BaseAlgorithm) -> dict[str, Any]:
    """Measure what the policy did lately: PPO's rollout before its update, DQN's last transitions.

    DQN's dominant action is that of the actions its network chose: the random ones that exploration
    adds are taken out, and with more than half of them random there is no such signal.

    Returns:
        Fields of :class:`HealthSample`; none before there is anything to look at.
    """
    actions, observations, rewards = _recent(model)
    if len(actions) == 0:
        return {}
    counts = np.bincount(actions.astype(np.int64), minlength=int(model.action_space.n))  # type: ignore[attr-defined]
    chosen = np.unique(np.linspace(0, len(observations) - 1, _PROBE_OBSERVATIONS).astype(int))
    probe = observations[chosen]
    frozen = np.all(probe[:, 1:] == probe[:, :1], axis=(1, 2, 3))
    found: dict[str, Any] = {
        "dominant_action_share": _dominant_share(model, counts),
        "frozen_observation_share": float(frozen.mean()),
        "dormant_share": dormant_share(model, probe),
    }
    choices = math.log(len(counts))
    if isinstance(model, PPO):
        # The rollout's own log-probabilities estimate the entropy of the policy that acted.
        found["entropy_ratio"] = float(-model.rollout_buffer.log_probs.mean() / choices)
    elif isinstance(model, DQN):
        with torch.no_grad():
            inputs = torch.as_tensor(probe, device=model.device)
            q_values = model.q_net(inputs)
        found["q_max"] = float(q_values.max())
        # Sum of a geometric series of the largest reward seen (never below one reward's size).
        # Before the first reward nothing is known of what is possible.
        if (largest := float(np.abs(rewards).max())) > 0:
            found["q_bound"] = largest / max(1 - model.gamma, 1e-6)
    return found


def _dominant_share(model: BaseAlgorithm, counts: npt.NDArray[np.int64]) -> float | None:
    """Share of the most frequent action among those that the policy chose, 0 … 1.

    Args:
        model: the algorithm.
        counts: how often each action was taken lately; A numbers.

    Returns:
        None where exploration leaves too few that DQN's network chose.
    """
    share = float(counts.max() / counts.sum())
    if not isinstance(model, DQN):
        return share
    random = _exploration(model, int(counts.sum()))
    if random > _EXPLORATION_LIMIT:
        return None
    # share = (1 - random) * greedy + random / A: exploration draws from all A actions alike.
    return min(max((share - random / len(counts)) / (1 - random), 0.0), 1.0)


def _exploration(model: DQN, actions: int) -> float:
    """Mean chance of a random action while the last `actions` (of all environments) were taken."""
    ages = np.arange(model.n_envs, actions + 1, model.n_envs)
    taken_at = np.maximum(model.num_timesteps - ages, 0)
    rates = [
        1.0 if steps < model.learning_starts
        else model.exploration_schedule(1 - steps / model._total_timesteps)
        for steps in taken_at
    ]  # fmt: skip
    return float(np.mean(rates))


def _recent(model: BaseAlgorithm) -> tuple[Any, Any, Any]:
    """Give recent actions (M,), observations uint8 (K, 4, 84, 84) and rewards."""
    if isinstance(model, PPO):
        buffer = model.rollout_buffer
        if not buffer.full:
            return (), (), ()
        observations = buffer.observations.reshape(-1, *buffer.obs_shape)
        return buffer.actions.reshape(-1), observations, buffer.rewards
    replay: Any = model.replay_buffer  # type: ignore[attr-defined]
    end = replay.pos
    start = max(0, end - 512)
    if start >= end:
        return (), (), ()
    stored = replay.observations[start:end].reshape(-1, *replay.obs_shape)
    filled = replay.buffer_size if replay.full else end
    return replay.actions[start:end].reshape(-1), stored, replay.rewards[:filled]


def _minibatches(model: PPO) -> int:
    """Count the minibatches of one update, all epochs together."""
    return int(model.n_epochs) * math.ceil(model.n_steps * model.n_envs / int(model.batch_size))


def _scalar(scalars: Mapping[str, Any], name: str) -> float | None:
    value = scalars.get(name)
    return None if value is None else float(value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(values: deque[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _score(record: EpisodeRecord) -> float:
    """Score a training episode as `mario-eval-v1` does: 0 … 1."""
    if record.end == "flag":
        return 0.5 + 0.5 * min(record.state["time_left"] / _START_CLOCK, 1.0)
    if record.level is None:
        return 0.0
    return 0.5 * min(record.furthest_x_px / find_level(record.level).length_px, 1.0)
