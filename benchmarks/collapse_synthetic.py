"""Synthetic traces for `benchmarks/collapse.py`: the signals that a run shows, drawn by seed.

A healthy run's signals wander within the ranges that the real healthy traces and published curves
show, wider rather than narrower: slow learners, plateaus, setbacks of a third, noisy value losses,
entropy that falls to a tenth. A ruin changes the signals that it changes in the real traces, in
strength and pace drawn at random. Synthetic traces make false alarms countable (a hundred healthy
real runs are hours); that the detector works on the real thing is shown by the real traces.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

RUIN_KINDS = (
    "learning_rate_x30", "clip_off", "entropy_0_huge_bonus", "frozen_observations",
    "reward_sign_flipped", "value_loss_exploding", "dead_activations", "environments_1_to_n",
)  # fmt: skip


def synthetic_runs(healthy: int, ruined_each: int) -> list[dict[str, Any]]:
    """Draw the traces; the same numbers give the same traces."""
    runs = [_run(f"synthetic-h{index:03d}", "healthy", 10_000 + index) for index in range(healthy)]
    for kind_index, kind in enumerate(RUIN_KINDS):
        for index in range(ruined_each):
            seed = 20_000 + 1_000 * kind_index + index
            runs.append(_run(f"synthetic-{kind}-{index:02d}", kind, seed))
    return runs


def _run(identity: str, kind: str, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    updates = int(rng.integers(60, 201))
    onset = None if kind == "healthy" else int(updates * rng.uniform(0.3, 0.7))
    samples = _Trace(rng, updates, kind, onset).samples()
    found: dict[str, Any] = {
        "id": identity, "label": kind, "algorithm": "ppo", "source": "synthetic", "seed": seed,
        "updates": updates, "samples": samples,
    }  # fmt: skip
    return found if onset is None else found | {"onset": onset}


class _Trace:
    """One run: a level of play that grows, and the signals around it."""

    def __init__(
        self, rng: np.random.Generator, updates: int, kind: str, onset: int | None
    ) -> None:
        self.rng, self.updates, self.kind = rng, updates, kind
        self.onset = updates + 1 if onset is None else onset
        self.environments = int(rng.choice([8, 16, 32]))
        self.start_px, self.gain_px = rng.uniform(250, 600), rng.uniform(0, 2200)
        self.pace = rng.uniform(0.15, 0.8)
        self.setback = (rng.uniform(0.2, 0.9), rng.uniform(0.0, 0.33), rng.uniform(0.02, 0.15))
        self.spread = rng.uniform(0.25, 0.55)
        self.entropy = (rng.uniform(0.9, 1.0), rng.uniform(0.1, 0.85))
        self.loss, self.loss_noise = 10 ** rng.uniform(-2, 2), rng.uniform(0.2, 0.9)
        self.kl = 10 ** rng.uniform(-4, -2)
        self.norm = 10 ** rng.uniform(-0.5, 2)
        self.dormant = rng.uniform(0.1, 0.75)
        self.correlation = rng.uniform(0.7, 0.99)
        self.per_update = rng.uniform(2, 20)
        self.last_two: list[deque[float]] = [deque(maxlen=2) for _ in range(self.environments)]
        self.strength, self.speed = rng.uniform(0.5, 1.0), rng.uniform(1, 6)

    def samples(self) -> list[dict[str, Any]]:
        episodes: list[tuple[float, float, int]] = []
        found = []
        for update in range(1, self.updates + 1):
            for _ in range(int(self.rng.poisson(self.per_update))):
                episodes.append(self._episode(update))
            found.append(self._sample(update, episodes))
        return found

    def _level(self, update: int) -> float:
        share = update / self.updates
        level = self.start_px + self.gain_px * (1 - math.exp(-share / self.pace))
        centre, depth, width = self.setback
        return level * (1 - depth * math.exp(-(((share - centre) / width) ** 2)))

    def _ruined(self, update: int) -> float:
        """0 before the onset, then towards 1 at the ruin's own pace."""
        age = update - self.onset
        return 0.0 if age <= 0 else self.strength * (1 - math.exp(-age / self.speed))

    def _episode(self, update: int) -> tuple[float, float, int]:
        environment = int(self.rng.integers(self.environments))
        ruin = self._ruined(update)
        drop = {"learning_rate_x30": 0.8, "clip_off": 0.7, "reward_sign_flipped": 0.7,
                "entropy_0_huge_bonus": 0.2, "frozen_observations": 0.3,
                "dead_activations": 0.6, "value_loss_exploding": 0.1}  # fmt: skip
        level = self._level(update) * (1 - drop.get(self.kind, 0.0) * ruin)
        x_px = max(40.0, level * self.rng.lognormal(-(self.spread**2) / 2, self.spread))
        if self.kind == "environments_1_to_n" and environment > 0 and update > self.onset:
            x_px = self.rng.uniform(40, 80)
        # Noise in the return that gives about the wanted rank correlation with x.
        noise = level * self.spread * math.sqrt(1 / self.correlation**2 - 1)
        value = 0.1 * (x_px + noise * self.rng.normal())
        if self.kind == "reward_sign_flipped" and update > self.onset:
            value = -value
        self.last_two[environment].append(x_px)
        return value, x_px, environment

    def _sample(self, update: int, episodes: list[tuple[float, float, int]]) -> dict[str, Any]:
        rng, ruin, kind = self.rng, self._ruined(update), self.kind
        share = update / self.updates
        begin, end = self.entropy
        entropy = begin + (end - begin) * share + 0.02 * rng.normal()
        dominant = 1 / 7 + (1 - 1 / 7) * max(0.0, 1 - entropy) ** 1.3 + 0.03 * rng.normal()
        kl = self.kl * rng.lognormal(0, 0.6)
        clipped = min(0.4, 10 * kl) * rng.uniform(0.5, 1.5)
        explained = 0.9 * min(1, 3 * share) * rng.uniform(0.2, 1.0) - 0.1 * rng.random()
        loss = self.loss * rng.lognormal(0, self.loss_noise)
        norm = self.norm * rng.lognormal(0, 0.5)
        dormant, frozen = self.dormant + 0.03 * rng.normal(), 0.03 * rng.random()
        if update > self.onset:
            if kind in ("learning_rate_x30", "clip_off"):
                kl = max(kl, 10 ** rng.uniform(-0.9, 1.0))
                clipped, entropy = rng.uniform(0.5, 0.95), entropy * (1 - ruin)
                dominant = max(dominant, ruin)
                loss, explained = loss * 10 ** rng.uniform(0, 2), rng.uniform(-3, 0.1)
                dormant = max(dormant, 0.98 * ruin)
            elif kind == "entropy_0_huge_bonus":
                loss, norm = loss * 10 ** rng.uniform(2.3, 4), norm * 10 ** rng.uniform(1, 3)
                entropy, dominant = entropy * (1 - ruin), max(dominant, ruin)
            elif kind == "frozen_observations":
                frozen, explained = 1.0, rng.uniform(-0.3, 0.1)
            elif kind == "value_loss_exploding":
                loss, norm = loss * 10 ** rng.uniform(2.3, 6), norm * 10 ** rng.uniform(1, 4)
                explained = rng.uniform(-5, 0)
            elif kind == "dead_activations":
                dormant, kl, explained = 1.0, kl * 0.01, 0.0
        recent, last = episodes[-20:], episodes[-100:]
        return {
            "update": update, "total_steps": 4096 * update, "progress": share,
            "mean_return": _mean([e[0] for e in last]),
            "mean_furthest_px": _mean([e[1] for e in last]),
            "recent_return": _mean([e[0] for e in recent]) if len(recent) == 20 else None,
            "recent_furthest_px": _mean([e[1] for e in recent]) if len(recent) == 20 else None,
            "environments_furthest_px": [
                sum(x) / len(x) if x else math.nan for x in self.last_two
            ],
            "return_progress_correlation": _rank(recent) if len(recent) == 20 else None,
            "episodes_finished": len(episodes), "episodes_seen": len(episodes),
            "entropy_ratio": float(np.clip(entropy, 0, 1)),
            "dominant_action_share": float(np.clip(dominant, 1 / 7, 1)),
            "approx_kl": float(kl), "clip_fraction": float(np.clip(clipped, 0, 1)),
            "explained_variance": float(explained), "value_loss": float(loss),
            "gradient_norm": float(norm), "dormant_share": float(np.clip(dormant, 0, 1)),
            "frozen_observation_share": float(frozen),
        }  # fmt: skip


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rank(episodes: list[tuple[float, float, int]]) -> float:
    ranks = [np.argsort(np.argsort([e[i] for e in episodes])) for i in (0, 1)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
