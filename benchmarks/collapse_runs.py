"""Records the real traces of `benchmarks/collapse.py`: short runs, healthy and ruined on purpose.

    python benchmarks/collapse_runs.py            # all that are not recorded yet, 20 min of a core
    python benchmarks/collapse_runs.py --limit 2  # the next two

Each run is a real PPO or DQN run of this project on the native console with the `tiny` network. A
ruined one is healthy until its onset, when one thing is broken and stays broken; the onset is the
truth that the detector's delay is measured against. One JSON line a run is appended to
`benchmarks/data/collapse/real-*.jsonl.gz`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mario.config.experiment import parse_config
from mario.config.rewards import RewardConfig
from mario.training.collapse_detector import Health, HealthSample
from mario.training.sinks import Progress, TrainingSink
from mario.training.trainer import train

DATA = Path(__file__).parent / "data" / "collapse"
# Of what is recorded next; a trace carries its own length (the first ones: 100 and 40 updates).
UPDATES = 60
#: Of each algorithm: updates of a run, agent steps of an update, settings by the run's own.
ALGORITHMS: dict[str, tuple[int, int, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "ppo": (UPDATES, 256, lambda run: {
        "n_steps": 256 // run["environments"], "batch_size": 128, "n_epochs": 2,
        "entropy_coefficient": run["entropy"],
    }),
    "dqn": (30, 1_000, lambda run: {
        "buffer_size": 20_000, "learning_starts_steps": 1_000, "batch_size": 32,
        "train_frequency_steps": 32, "exploration_fraction": 0.3,
    }),
}  # fmt: skip
HEALTHY, RUINED_EACH = 32, 5
ONSET_SHARE = (0.35, 0.65)


@dataclass
class Subject:
    """The parts of a run that a ruin takes hold of."""

    model: Any
    env: Any


def _learning_rate(subject: Subject) -> None:
    subject.model.learning_rate.factor = 30.0


def _clip_off(subject: Subject) -> None:
    subject.model.clip_range = lambda _: 1e9
    subject.model.n_epochs = 10
    subject.model.learning_rate.factor = 4.0
    subject.model.max_grad_norm = 1e9


def _scale_reward(subject: Subject, factor: float) -> None:
    reward = subject.env._reward
    subject.env._reward = reward.model_copy(update={"scale": reward.scale * factor})


def _flag_bonus(subject: Subject) -> None:
    # Short runs do not reach the flag, so the huge bonus waits where they come: at 300 px.
    subject.env._reward = RewardConfig(name="milestone", milestones={300: 1000.0})
    # The trainer follows the entropy schedule before each update; a property stays at zero.
    subject.model.__class__ = _without_entropy(type(subject.model))


def _without_entropy(kind: type) -> type:
    return type(kind.__name__, (kind,), {
        "ent_coef": property(lambda self: 0.0, lambda self, value: None),
    })  # fmt: skip


def _frozen(subject: Subject) -> None:
    env = subject.env
    step, still = env.step_wait, env._observations.copy()

    def frozen_step() -> Any:
        _, rewards, dones, infos = step()
        still[:, :3] = still[:, 3:]
        return still.copy(), rewards, dones, infos

    env.step_wait = frozen_step


def _sign(subject: Subject) -> None:

    _scale_reward(subject, -1)


def _value_loss(subject: Subject) -> None:

    _scale_reward(subject, 1000)


def _dead_units(subject: Subject) -> None:
    policy = subject.model.policy
    extractor = getattr(policy, "features_extractor", None) or policy.q_net.features_extractor
    with torch.no_grad():
        extractor.dense.bias.fill_(-50.0)


def _some_environments(subject: Subject) -> None:
    """The original accident: only environment 0 still plays what the policy chooses."""
    env = subject.env
    send = env.step_async

    def stuck(actions: Any) -> None:
        changed = np.array(actions)
        changed[1:] = 0
        send(changed)

    env.step_async = stuck


RUINS: dict[str, Callable[[Subject], None]] = {
    "learning_rate_x30": _learning_rate,
    "clip_off": _clip_off,
    "entropy_0_huge_bonus": _flag_bonus,
    "frozen_observations": _frozen,
    "reward_sign_flipped": _sign,
    "value_loss_exploding": _value_loss,
    "dead_activations": _dead_units,
    "environments_1_to_n": _some_environments,
}


class Recorder(TrainingSink):
    """Keeps the samples and ruins the run at its onset."""

    def __init__(self, onset: int | None, ruin: Callable[[Subject], None] | None) -> None:
        self.onset, self.ruin = onset, ruin
        self.samples: list[HealthSample] = []
        self.subject: Subject | None = None
        self.error = ""

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """Keep the sample."""
        self.samples.append(sample)

    def on_progress(self, progress: Progress) -> None:
        """Ruin the run when its time has come."""
        if self.onset is not None and len(self.samples) == self.onset and self.ruin is not None:
            assert self.subject is not None
            ruin, self.ruin = self.ruin, None
            ruin(self.subject)


def plan() -> list[dict[str, Any]]:
    """List the runs: healthy ones of many kinds, and each ruin several times."""
    chance = random.Random(5)
    runs: list[dict[str, Any]] = []
    for index in range(HEALTHY):
        runs.append({"label": "healthy", "algorithm": "dqn" if index % 8 == 7 else "ppo"})
    for ruin in RUINS:
        for index in range(RUINED_EACH):
            # DQN has no clip range, no entropy; the other ruins are tried on it as well.
            dqn = index == 4 and ruin not in ("clip_off", "entropy_0_huge_bonus",
                                              "dead_activations")  # fmt: skip
            runs.append({"label": ruin, "algorithm": "dqn" if dqn else "ppo"})
    for index, run in enumerate(runs):
        run.update(
            id=f"real-{index:03d}",
            seed=1000 + index,
            environments=chance.choice([8, 16, 16, 16]),
            learning_rate=chance.choice([1e-4, 2.5e-4, 5e-4]),
            entropy=chance.choice([0.005, 0.01, 0.02]),
            gamma=chance.choice([0.9, 0.95, 0.99]),
            reward=chance.choice(["progress", "progress", "game", "standard"]),
            level=chance.choice(["1-1", "1-1", "1-2", "2-1", "4-1", "5-1"]),
        )
        if run["label"] != "healthy":
            run["onset"] = round(UPDATES * chance.uniform(*ONSET_SHARE))
    # Interleaved, so that a first part of the list already holds every kind.
    chance.shuffle(runs)
    return runs


def record(run: dict[str, Any]) -> dict[str, Any]:
    """Play one run and return it with its samples."""
    updates, per_update, settings = ALGORITHMS[run["algorithm"]]
    scale = {"progress": 1.0, "game": 0.1, "standard": 0.02}[run["reward"]]
    algorithm: dict[str, Any] = {
        "name": run["algorithm"], "learning_rate": run["learning_rate"], "gamma": run["gamma"],
        **settings(run),
    }  # fmt: skip
    config = parse_config(
        {
            "name": run["id"], "task": run["level"], "seed": run["seed"],
            "total_steps": per_update * updates, "environments": run["environments"],
            "algorithm": algorithm,
            "game": {"max_steps": 200, "stuck_limit_steps": 30,
                     "reward": {"name": run["reward"], "scale": scale}},
            "network": {"features": "tiny", "threads": 1, "channels_last": False},
            "checkpoint": {"every_steps": 10**9},
            "selection": {"units": 0}, "collapse": {"action": "warn"},
        },
        run["id"],
    )  # fmt: skip
    onset = run.get("onset")
    if onset is not None:
        onset = run["onset"] = round(onset * updates / UPDATES)
    recorder = Recorder(onset, RUINS.get(run["label"]))

    def keep(model: Any) -> None:
        recorder.subject = Subject(model, model.get_env())

    folder = Path(tempfile.mkdtemp(prefix="collapse-"))
    started = time.monotonic()
    try:
        result = train(config, folder / "run", sinks=[recorder], initial=keep)
        status = result.status
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        **run, "updates": updates, "status": status, "source": "real",
        "seconds": round(time.monotonic() - started, 1),
        "samples": [_compact(sample) for sample in recorder.samples],
    }  # fmt: skip


def _compact(sample: HealthSample) -> dict[str, Any]:
    """Five significant digits are more than any rule looks at."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}")
        return [short(item) for item in value] if isinstance(value, list) else value

    return {name: short(value) for name, value in sample.to_dict().items() if value is not None}


def read_runs() -> list[dict[str, Any]]:
    """Read the recorded runs."""
    runs: dict[str, dict[str, Any]] = {}
    for path in sorted(DATA.glob("real*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            # Two recorders at once may both have recorded one; the first counts.
            for run in map(json.loads, file):
                runs.setdefault(str(run["id"]), run)
    return [runs[identity] for identity in sorted(runs)]


def main() -> None:
    """Record what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=10**6)
    parser.add_argument("--quick", action="store_true", help="record none")
    parser.add_argument("--part", default="0/1", help="k/n: every n-th run from the k-th on")
    given = parser.parse_args()
    part, parts = (int(number) for number in given.part.split("/"))
    DATA.mkdir(parents=True, exist_ok=True)
    file_name = DATA / f"real-{part}.jsonl.gz"
    done = {run["id"] for run in read_runs()}
    missing = [run for run in plan()[part::parts] if run["id"] not in done]
    for run in missing[: 0 if given.quick else given.limit]:
        trace = record(run)
        line = json.dumps(trace, separators=(",", ":")) + "\n"
        # A gzip member of its own in one write: a kill leaves whole traces only.
        with file_name.open("ab", buffering=0) as file:
            file.write(gzip.compress(line.encode(), mtime=0))
        last = trace["samples"][-1]
        print(run["id"], run["label"], run["algorithm"], f"{trace['seconds']} s", trace["status"],
              len(trace["samples"]), "x", last.get("mean_furthest_px"), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
