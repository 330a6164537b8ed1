"""PPO steps a second end to end, and where the time goes.

    python benchmarks/training.py [--quick]

One iteration (rollout and update) of the same PPO is timed on: the usual stack
(gym-super-mario-bros with the usual wrappers in SubprocVecEnv, stable-baselines3's CnnPolicy), the
same policy on the native console, and this project's policy on it, with further rows that change
one thing each (network, layout, threads, number of environments, precision, compilation). Repeats
are interleaved, so that a busy moment of the machine hits every row.

`learning_curves.py` shows that the faster steps are worth as much.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gymnasium
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from benchmarks._report import Row, cores, finish, print_table, spread, target
from mario.config.experiment import ExperimentConfig, parse_config
from mario.game.smb.actions import button_bytes
from mario.training.algorithms.factory import build_algorithm
from mario.training.networks import choose_device, choose_precision
from mario.training.sb3_vec_env import make_vec_env
from mario.training.threads import set_threads
from tests.support.stock_env import UsualStack

BUTTONS = button_bytes("simple")
STEPS, ENVIRONMENTS, BATCH, EPOCHS = 128, 16, 256, 4
USUAL_ENVIRONMENTS = 8
AUTO = choose_precision("auto", choose_device("auto"))  # what the default means on this machine
DEFAULT, SMALL = f"native, nature, {AUTO} (the default)", f"native, small, {AUTO}"


class UsualEnv(gymnasium.Env[np.ndarray, int]):
    """The usual stack behind Gymnasium's interface, channels first as the wrappers give it."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = gymnasium.spaces.Discrete(len(BUTTONS))

    def __init__(self) -> None:
        self._stack = UsualStack("1-1", BUTTONS)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Start the level."""
        super().reset(seed=seed)
        return self._stack.reset(), {}

    def step(self, action: int) -> Any:
        """Hold an action for four frames."""
        observation, reward, done, _ = self._stack.step(int(action))
        return observation, 0.1 * reward, done, False, {}


def experiment(**changes: Any) -> ExperimentConfig:
    """The PPO that is timed; `changes`: network keys, environments, rollout_steps, seed."""
    environments = changes.pop("environments", ENVIRONMENTS)
    rollout_steps = changes.pop("rollout_steps", ENVIRONMENTS * STEPS // environments)
    return parse_config(
        {
            "name": "benchmark", "total_steps": 10**9, "environments": environments,
            "seed": changes.pop("seed", 0),
            "algorithm": {"n_steps": rollout_steps, "batch_size": BATCH, "n_epochs": EPOCHS},
            "game": {"reward": {"name": "progress", "scale": 0.1}},
            "network": changes,
        },
        "benchmark",
    )  # fmt: skip


def stock_policy(env: VecEnv, seed: int = 0) -> PPO:
    """stable-baselines3 as it comes: CnnPolicy, the same PPO."""
    model = PPO("CnnPolicy", env, n_steps=ENVIRONMENTS * STEPS // env.num_envs, batch_size=BATCH,
                n_epochs=EPOCHS, gamma=0.95, gae_lambda=0.95, learning_rate=2.5e-4,
                ent_coef=0.01, seed=seed, device="auto")  # fmt: skip
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


class Subject:
    """One row: a model on its games, one iteration of which can be timed."""

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self.name, self._make = name, make
        self.model: Any = None
        self.rates: list[float] = []
        self.shares: list[dict[str, float]] = []

    def iterate(self) -> None:
        """Time one iteration; the first call also opens everything and warms up."""
        first = self.model is None
        if first:
            self.model = self._make()
            self._spent = {"games": 0.0, "inference": 0.0, "update": 0.0}
            self._time("games", self.model.env, "step_wait")
            self._time("inference", self.model.policy, "forward")
            self._time("update", self.model, "train")
        for part in self._spent:
            self._spent[part] = 0.0
        steps = self.model.n_steps * self.model.n_envs
        began = time.perf_counter()
        self.model.learn(steps, reset_num_timesteps=False, log_interval=None)
        seconds = time.perf_counter() - began
        if not first:
            self.rates.append(steps / seconds)
            rest = seconds - sum(self._spent.values())
            self.shares.append(
                {part: spent / seconds for part, spent in {**self._spent, "rest": rest}.items()}
            )

    def _time(self, part: str, owner: Any, method: str) -> None:
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self._spent[part] += time.perf_counter() - began

        object.__setattr__(owner, method, timed)

    def row(self) -> Row:
        """What was measured."""
        shares = {part: round(statistics.mean(s[part] for s in self.shares), 3)
                  for part in self.shares[0]}  # fmt: skip
        return {"name": self.name, "steps_per_second": spread(self.rates), **shares}


def ours(threads: int = 0, **changes: Any) -> Callable[[], Any]:
    """This project's policy on the native console."""

    def make() -> Any:
        config = experiment(**changes)
        return build_algorithm(config, make_vec_env(config, threads=threads)).model

    return make


def subjects(quick: bool) -> list[Subject]:
    """The rows, the comparison first."""
    found = [
        Subject("usual stack, SB3 policy", lambda: stock_policy(
            SubprocVecEnv([UsualEnv] * USUAL_ENVIRONMENTS))),
        Subject("native console, SB3 policy", lambda: stock_policy(make_vec_env(experiment()))),
        Subject(DEFAULT, ours()),
        Subject(SMALL, ours(features="small")),
    ]  # fmt: skip
    if quick:
        return found
    found += [
        Subject("native, small, 8 environments", ours(features="small", environments=8)),
        Subject("native, small, 32 environments", ours(features="small", environments=32)),
        Subject("native, small, 64 environments", ours(features="small", environments=64)),
        Subject("native, nature, 64 environments", ours(environments=64)),
        Subject("native, nature, rollouts of 32 steps", ours(rollout_steps=32)),
        Subject("native, nature, rollouts of 512 steps", ours(rollout_steps=512)),
        Subject("native, nature, not channels last", ours(channels_last=False)),
        Subject("native, nature, compiled", ours(compile=True)),
        Subject("native, nature, games on 1 thread", ours(threads=1)),
    ]
    if AUTO == "bfloat16":
        found.append(Subject("native, nature, float32", ours(precision="float32")))
        found.append(Subject("native, small, float32", ours(features="small", precision="float32")))
    return found


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    set_threads(experiment())
    measured = subjects(given.quick)
    for _ in range(2 if given.quick else 4):
        for subject in measured:
            subject.iterate()
    rows = [subject.row() for subject in measured]
    for subject in measured:
        subject.model.env.close()
    print_table(f"PPO, {cores()} cores, {ENVIRONMENTS} games and rollouts of {STEPS} steps, "
                f"batch {BATCH}, {EPOCHS} epochs", rows,
                ("name", "steps_per_second", "games", "inference", "update", "rest"))  # fmt: skip
    rate = {row["name"]: row["steps_per_second"]["median"] for row in rows}
    usual, stock = rate["usual stack, SB3 policy"], rate["native console, SB3 policy"]
    # The default is held to the goals, not the best row; `small` is what `make demo` trains.
    targets = [
        target("steps/s, our default over the usual stack", 5.0, rate[DEFAULT] / usual),
        target("steps/s, our default over SB3's policy on the native console", 2.0,
               rate[DEFAULT] / stock),
        target("steps/s, small over SB3's policy on the native console", 2.0, rate[SMALL] / stock),
    ]  # fmt: skip
    return finish("training", rows, targets, quick=given.quick)


if __name__ == "__main__":
    sys.exit(main())
