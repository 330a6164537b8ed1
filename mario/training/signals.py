"""Measures network, gradient and rollout for the collapse detector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from mario.game.console.contract import UInt8Array
from mario.training.algorithms.contract import Algorithm

_PROBE_OBSERVATIONS = 64
#: A unit is dormant when its mean activation is below this share of its layer's mean
#: (Sokar et al. 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning").
_DORMANT_TAU = 0.025
#: Above this share of random actions the network's own choices cannot be inferred.
_EXPLORATION_LIMIT = 0.5


class GradientMeter:
    """Measures the gradient's norm before stable-baselines3 clips it, and guards each update.

    Hooks on the parameters see every gradient as backward finishes it; a hook on the optimizer
    sees each update before it changes the weights.
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

        An update that the guard refused does not count: it changed no weight.
        """
        norms, self._norms = self._norms, []
        return float(np.mean(norms)) if norms else None

    def close(self) -> None:
        """Remove the hooks."""
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
        observations: (N, *shape) of the task's kind of observation, recent ones.

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


def rollout_signals(algorithm: Algorithm) -> dict[str, Any]:
    """Measure the policy's last actions and observations.

    Returns:
        Fields of :class:`HealthSample`; none before the first action.
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
