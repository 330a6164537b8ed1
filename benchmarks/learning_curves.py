"""Learning curves of stable-baselines3's policy and this project's, same console, steps and seeds.

    python benchmarks/learning_curves.py [--quick] [--seeds 3] [--steps 61440]

`training.py` says how many steps a second each does; this says that a step is worth as much. The
same PPO (stable-baselines3's algorithm) trains on level 1-1 with stable-baselines3's CnnPolicy,
with this project's `nature` network (the same layers, computed faster) and with `small` (a third of
the work, what `make demo` uses). A point of a curve is the mean furthest x of the episodes that
ended in a sixth of the run. The comparison is over the area under the curve; its interval is a
bootstrap over seeds.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks._report import Row, finish, print_table, target
from benchmarks.training import experiment, stock_policy
from mario.training.algorithms.factory import build_algorithm
from mario.training.sb3_vec_env import make_vec_env
from mario.training.threads import set_threads

POINTS = 6
STOCK = "SB3 CnnPolicy"


def curve(name: str, seed: int, steps: int) -> list[float]:
    """Train once; mean furthest x in px of each sixth of the run."""
    config = experiment(seed=seed, features="small" if name == "small" else "nature")
    env = make_vec_env(config)
    model: Any = stock_policy(env, seed) if name == STOCK else build_algorithm(config, env).model
    ended: list[tuple[int, int]] = []
    step = env.step_wait

    def listen() -> Any:
        answer = step()
        ended.extend(
            (info["record"].total_steps, info["record"].furthest_x_px)
            for info in answer[3]
            if "record" in info
        )
        return answer

    env.step_wait = listen  # type: ignore[method-assign]
    try:
        model.learn(steps, log_interval=None)
    finally:
        env.close()
    when, far = np.array(ended).T
    part = np.minimum((when - 1) * POINTS // steps, POINTS - 1)
    return [float(far[part == i].mean()) for i in range(POINTS)]


def ratio_of_areas(mine: list[list[float]], stock: list[list[float]]) -> dict[str, float]:
    """Mean area under the curve over the other's, with a 95% bootstrap interval over seeds."""
    ours, theirs = np.mean(mine, axis=1), np.mean(stock, axis=1)
    generator = np.random.default_rng(0)
    pick = generator.integers(0, len(ours), (2, 10_000, len(ours)))
    drawn = ours[pick[0]].mean(axis=1) / theirs[pick[1]].mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {"ratio": float(ours.mean() / theirs.mean()), "low": float(low), "high": float(high)}


def main() -> int:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=61_440)
    given = parser.parse_args()
    seeds, steps = (1, 6_144) if given.quick else (given.seeds, given.steps)
    set_threads(experiment())
    curves: dict[str, list[list[float]]] = {STOCK: [], "nature": [], "small": []}
    for seed in range(seeds):  # all three in turn, so that a broken-off run compares like with like
        for name, found in curves.items():
            began = time.perf_counter()
            found.append(curve(name, seed, steps))
            points = " ".join(f"{point:.0f}" for point in found[-1])
            print(f"{name}, seed {seed}: {points} px, {time.perf_counter() - began:.0f} s",
                  flush=True)  # fmt: skip
    rows: list[Row] = []
    for name, found in curves.items():
        compared = ratio_of_areas(found, curves[STOCK])
        rows.append({"name": name, "steps": steps, "seeds": seeds,
                     "curve_px": np.mean(found, axis=0).round(1).tolist(),
                     "curves_px": np.round(found, 1).tolist(),
                     "area_over_stock": compared["ratio"], "area_low": compared["low"],
                     "area_high": compared["high"]})  # fmt: skip
    columns = ("name", "steps", "seeds", "curve_px", "area_over_stock", "area_low", "area_high")
    print_table("Mean furthest x in px, by sixths of the run", rows, columns)
    # One seed has no spread to speak of: a quick run only shows that it runs.
    targets = [
        target(f"{row['name']}: area under the curve over {STOCK}", 0.9, row["area_over_stock"])
        for row in rows if row["name"] != STOCK and not given.quick
    ] + [
        target(f"{row['name']}: upper 95% end of area under the curve over {STOCK}", 1.0,
               row["area_high"])
        for row in rows if row["name"] != STOCK and not given.quick
    ]  # fmt: skip
    return finish("learning_curves", rows, targets, quick=given.quick)


if __name__ == "__main__":
    sys.exit(main())
