"""Plays the episodes that `gate_calibration.py` bootstraps from, and writes benchmarks/data/gate/.

    python benchmarks/gate_data.py --units 300 random NAME=FOLDER … [--config CONFIG]

`random` is the uniform random policy over `simple`, `right` the one over its four moves to the
right, `runner` jumps at two of three steps while running. FOLDER is a policy artefact or, with the
`--config` of its run, a training checkpoint (`checkpoints/steps-…`), which is exported first: the
checkpoints of one long run are policies of one recipe at many clear rates. All are played on level
1-1 under `mario-eval-v1` on the same screening seeds, so that the files also hold seed-coupled
pairs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
from _report import commit

from mario.config.experiment import ExperimentConfig, load_config
from mario.errors import EvaluationError
from mario.evaluation.protocol import play_units
from mario.evaluation.records import write_jsonl
from mario.evaluation.seeds import SeedFamily, units_of
from mario.game.batch.contract import BatchStep
from mario.game.console.contract import UInt8Array
from mario.game.smb.actions import action_set
from mario.jobs.policies import LoadedPolicy, policy_from_artefact, random_policy

BASELINES: dict[str, tuple[str, ...]] = {
    "random": (),
    "right": ("right", "right+A", "right+B", "right+A+B"),
    "runner": ("right+B", "right+A+B", "right+A+B"),
}
DATA = Path(__file__).resolve().parent / "data" / "gate"


def load(reference: str, config: ExperimentConfig | None, aside: Path) -> tuple[str, LoadedPolicy]:
    """Name and policy of one command-line argument."""
    if reference in BASELINES:
        by_name = {action.name: action for action in action_set("simple")}
        chosen = BASELINES[reference] or tuple(by_name)
        # A name that stands twice is drawn twice as often.
        specs = tuple(by_name[name] for name in chosen)
        return reference, random_policy(specs, frame_skip=4)
    name, separator, place = reference.partition("=")
    if not separator or not name:
        raise EvaluationError(
            f"got policy {reference!r}; expected {', '.join(BASELINES)} or NAME=FOLDER"
        )
    folder = Path(place)
    if (folder / "tensors.pt").is_file():
        if config is None:
            raise EvaluationError(
                f"got the training checkpoint {folder} without its experiment; expected --config "
                "with the `config.yaml` of its run"
            )
        folder = export(folder, config, aside / name)
    return name, policy_from_artefact(folder, label=name)


def export(checkpoint: Path, config: ExperimentConfig, folder: Path) -> Path:
    """Export a training checkpoint as an artefact, checked on what a few episodes show."""
    from mario.training.export import TorchPolicy, export_artefact
    from mario.training.trainer import load_trained

    algorithm = load_trained(config, checkpoint)
    policy = TorchPolicy(algorithm, config, "sample")
    seen: list[UInt8Array] = []

    def keep(observations: UInt8Array, step: BatchStep) -> None:
        seen.extend(observations[step.active])

    units = units_of(("1-1",), SeedFamily.SELECTION, "", 4)
    for _ in play_units(policy, units, policy_digest=checkpoint.name, on_step=keep):
        pass
    observations = np.stack(list(islice(seen, 0, None, max(1, len(seen) // 256))))
    export_artefact(algorithm, folder, config, observations=observations, git_commit=commit())
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("policies", nargs="+")
    parser.add_argument("--units", type=int, default=300)
    parser.add_argument("--config", type=Path, help="experiment of the training checkpoints")
    arguments = parser.parse_args()
    config = load_config(arguments.config) if arguments.config else None
    units = units_of(("1-1",), SeedFamily.SCREENING, "gate-benchmark", arguments.units)
    with tempfile.TemporaryDirectory(prefix="gate-data-") as aside:
        for reference in arguments.policies:
            name, loaded = load(reference, config, Path(aside))
            started = time.perf_counter()
            records = {
                r.unit: r
                for r in play_units(
                    loaded.policy, units, policy_digest=loaded.digest, environments=32
                )
            }
            write_jsonl(DATA / f"{name}.jsonl", [records[unit] for unit in units])
            clears = sum(r.cleared for r in records.values())
            score = sum(r.episode_score for r in records.values()) / len(records)
            print(
                f"{name}: {len(records)} episodes, {clears} clears, mean score {score:.3f}, "
                f"{time.perf_counter() - started:.0f} s",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
