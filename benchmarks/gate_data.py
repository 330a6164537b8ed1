"""Plays the episodes that `gate_calibration.py` bootstraps from, and writes benchmarks/data/gate/.

    python benchmarks/gate_data.py --units 300 random NAME=ARTEFACT_FOLDER[:greedy|:sample] …

`random` is the uniform random policy over `simple`, `right` the one over its four moves to the
right, `runner` jumps at two of three steps while running; the others are policy artefacts (for
instance checkpoints of one training run at several ages). Each is played on level 1-1 under
`mario-eval-v1` on the same screening seeds, so that the files also hold seed-coupled pairs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from mario.evaluation.protocol import play_units
from mario.evaluation.records import write_jsonl
from mario.evaluation.seeds import schedule
from mario.game.actions import action_set
from mario.jobs.policies import LoadedPolicy, policy_from_artefact, random_policy
from mario.policy.manifest import ActionSpec

BASELINES: dict[str, tuple[str, ...]] = {
    "random": (),
    "right": ("right", "right+A", "right+B", "right+A+B"),
    "runner": ("right+B", "right+A+B", "right+A+B"),
}
DATA = Path(__file__).resolve().parent / "data" / "gate"


def load(reference: str) -> tuple[str, LoadedPolicy]:
    """Name and policy of one command-line argument."""
    if reference in BASELINES:
        buttons = {action.name: action.buttons for action in action_set("simple")}
        chosen = BASELINES[reference] or tuple(buttons)
        # A name that stands twice is drawn twice as often.
        specs = tuple(ActionSpec(name=name, buttons=buttons[name]) for name in chosen)
        return reference, random_policy(specs, frame_skip=4)
    name, folder = reference.split("=", 1)
    return name, policy_from_artefact(folder, label=name)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("policies", nargs="+")
    parser.add_argument("--units", type=int, default=300)
    arguments = parser.parse_args()
    blocks = schedule(("1-1",), "screening", key="gate-benchmark", units=arguments.units)
    units = [unit.key for block in blocks for unit in block]
    for reference in arguments.policies:
        name, loaded = load(reference)
        started = time.perf_counter()
        records = {
            r.unit: r
            for r in play_units(
                loaded.policy, units, policy_digest=loaded.digest, environments=16, threads=1
            )
        }
        write_jsonl(DATA / f"{name}.jsonl", [records[unit] for unit in units])
        clears = sum(r.cleared for r in records.values())
        score = sum(r.episode_score for r in records.values()) / len(records)
        print(
            f"{name}: {len(records)} episodes, {clears} clears, mean score {score:.3f}, "
            f"{time.perf_counter() - started:.0f} s"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
