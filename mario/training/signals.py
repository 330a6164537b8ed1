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

from mario.game.console.contract import UInt8Array
from mario.game.smb.levels import level as find_level
from mario.training.algorithms.contract import Algorithm
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


def dormant_share(algorithm: Algorithm, observations: UInt8Array) -> float | None:
    """Measure the share of units that hardly ever fire.

    Args:
        algorithm: the algorithm.
        observations: uint8 (N, 4, 84, 84), recent ones.

    Returns:
        0 … 1 in the layer that has most of them (a network is as dead as its deadest layer);
        None for a network that does not give its activations.
    """
    extractor: Any = algorithm.network().extractor
    if not hasattr(extractor, "activations"):
        return None
    with torch.no_grad():
        inputs = torch.as_tensor(observations, device=algorithm.model.device)
        layers = extractor.activations(inputs)
    worst = 0.0
    for layer in layers:
        # A unit is a channel of a convolution, or an output of a dense layer.
        activity = layer.abs().transpose(0, 1).flatten(1).mean(dim=1)
        mean = float(activity.mean())
        score = activity / mean if mean > 0 else torch.zeros_like(activity)
        worst = max(worst, float((score <= _DORMANT_TAU).float().mean()))
    return worst


def make_sample(
    window: EpisodeWindow,
    *,
    update: int,
    total_steps: int,
    target_steps: int,
    gradient_norm: float | None,
    scalars: Mapping[str, Any],
    signals: Mapping[str, Any],
    since_update: float | None = None,
) -> HealthSample:
    """Put together what an update looked like.

    Args:
        window: the last episodes.
        update: its number, from 1.
        total_steps: agent steps of the run so far.
        target_steps: agent steps of the whole run.
        gradient_norm: from :class:`GradientMeter`.
        scalars: what stable-baselines3 logged in `train()`.
        signals: further fields of the sample, from :func:`rollout_signals` and the algorithm's
            `update_signals`.
        since_update: seconds since the update before, where that is too long.
    """
    returns, furthest = window.recent()
    enough = len(returns) == _RECENT_EPISODES
    finite = all(math.isfinite(value) for name, value in scalars.items()
                 if name.startswith("train/") and name != "train/explained_variance")  # fmt: skip
    return HealthSample(
        update=update,
        total_steps=total_steps,
        progress=min(total_steps / target_steps, 1.0),
        mean_return=window.mean_return(),
        mean_furthest_px=window.mean_furthest_px(),
        environments_furthest_px=window.environments_furthest_px(),
        recent_return=float(np.mean(returns)) if enough else None,
        recent_furthest_px=float(np.mean(furthest)) if enough else None,
        return_progress_correlation=spearman(returns, furthest) if enough else None,
        episodes_finished=window.finished,
        episodes_seen=window.seen,
        gradient_norm=gradient_norm,
        seconds_since_update=since_update,
        non_finite=not finite or not math.isfinite(gradient_norm or 0.0),
        **signals,
    )


def rollout_signals(algorithm: Algorithm) -> dict[str, Any]:
    """Measure what the policy did lately.

    Returns:
        Fields of :class:`HealthSample`; none before the policy did anything.
    """
    experience = algorithm.experience()
    if experience is None:
        return {}
    actions, observations = experience.actions, experience.observations
    chosen = np.unique(np.linspace(0, len(observations) - 1, _PROBE_OBSERVATIONS).astype(int))
    probe = observations[chosen]
    frames = probe if probe.ndim == 4 else None
    return {
        "dominant_action_share": _dominant_share(algorithm, actions.astype(np.int64)),
        "frozen_observation_share": None if frames is None else frozen_share(frames),
        "dormant_share": dormant_share(algorithm, probe),
        **algorithm.policy_signals(probe),
    }


def frozen_share(observations: UInt8Array) -> float:
    """Share of observations, uint8 (K, 4, 84, 84), whose four frames are equal."""
    return float(np.all(observations[:, 1:] == observations[:, :1], axis=(1, 2, 3)).mean())


def _dominant_share(algorithm: Algorithm, actions: npt.NDArray[np.int64]) -> float | None:
    """Share of the most frequent action among those that the policy chose, 0 … 1.

    Args:
        algorithm: the algorithm.
        actions: int64 (M,), the last actions, random ones included.

    Returns:
        None where more than half of them are random.
    """
    counts = np.bincount(actions, minlength=int(algorithm.model.action_space.n))  # type: ignore[attr-defined]
    share = float(counts.max() / counts.sum())
    random = algorithm.random_share(len(actions))
    if random > _EXPLORATION_LIMIT:
        return None
    # share = (1 - random) * greedy + random / A: exploration draws from all A actions alike.
    return min(max((share - random / len(counts)) / (1 - random), 0.0), 1.0)


def _mean(values: deque[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _score(record: EpisodeRecord) -> float:
    """Score a training episode as `mario-eval-v1` does: 0 … 1."""
    if record.end == "flag":
        return 0.5 + 0.5 * min(record.state["time_left"] / _START_CLOCK, 1.0)
    if record.level is None:
        return 0.0
    return 0.5 * min(record.furthest_x_px / find_level(record.level).length_px, 1.0)
