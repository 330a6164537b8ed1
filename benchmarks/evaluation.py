"""Wall-clock of an evaluation: 200 units of level 1-1 for two ONNX policies, by batch size.

    python benchmarks/evaluation.py [--quick] [--policies FOLDER FOLDER] [--repeats 3]

Splits the time between the network (`Policy.act`) and everything else (console, records). Without
artefacts it plays two Nature CNNs with random weights: as slow to answer as trained ones, but their
episodes are short or stuck, so the table says of itself which policies it was measured with.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _report import Row, finish, print_table, spread

from mario.evaluation.protocol import play_units
from mario.evaluation.seeds import SeedFamily, units_of
from mario.jobs.policies import LoadedPolicy, policy_from_artefact
from mario.policy.policy import Policy, PolicyOutput

BATCH_SIZES = (1, 4, 16, 64, 128, 200)  # 200 units: all of a policy's at once


class TimedPolicy:
    """A policy that counts the seconds its answers take."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.seconds = 0.0
        self.calls = 0

    @property
    def actions(self) -> Any:
        """The policy's own."""
        return self._policy.actions

    @property
    def selection(self) -> Any:
        """The policy's own."""
        return self._policy.selection

    @property
    def frame_skip(self) -> int:
        """The policy's own."""
        return self._policy.frame_skip

    @property
    def observation(self) -> Any:
        """The policy's own."""
        return self._policy.observation

    def act(self, *arguments: Any, **options: Any) -> PolicyOutput:
        """Answer, and count the time."""
        started = time.perf_counter()
        output = self._policy.act(*arguments, **options)
        self.seconds += time.perf_counter() - started
        self.calls += 1
        return output


def measure(loaded: Sequence[LoadedPolicy], units: int, environments: int) -> dict[str, float]:
    """Play the units with both policies once."""
    chosen = units_of(("1-1",), SeedFamily.SCREENING, "", units)
    total = network = steps = 0.0
    for policy in loaded:
        timed = TimedPolicy(policy.policy)
        started = time.perf_counter()
        records = list(
            play_units(timed, chosen, policy_digest=policy.digest, environments=environments)
        )
        total += time.perf_counter() - started
        network += timed.seconds
        steps += sum(record.steps for record in records)
    return {"seconds": total, "network_share": network / total, "steps_per_second": steps / total}


def nature_policies(folder: Path) -> list[LoadedPolicy]:
    """Two Nature CNNs with random weights."""
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.support.onnx_networks import write_test_artefact

    for seed in (0, 1):
        write_test_artefact(folder / str(seed), seed, selection="sample")
    return [policy_from_artefact(folder / str(seed)) for seed in (0, 1)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--policies", nargs=2, type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    units, repeats = (8, 1) if arguments.quick else (200, arguments.repeats)
    sizes = (1, 16) if arguments.quick else BATCH_SIZES
    with tempfile.TemporaryDirectory() as folder:
        if arguments.policies:
            loaded = [policy_from_artefact(path) for path in arguments.policies]
            kind = "trained"
        else:
            loaded, kind = nature_policies(Path(folder)), "Nature CNN, random weights"
        runs: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
        for _ in range(repeats):  # all sizes in turn, so that a busy moment meets them all
            for size in sizes:
                runs[size].append(measure(loaded, units, size))
    rows: list[Row] = [
        {
            "policies": kind,
            "environments": size,
            "units_of_each": units,
            "seconds": spread([run["seconds"] for run in found]),
            "network_share": spread([run["network_share"] for run in found]),
            "steps_per_second": spread([run["steps_per_second"] for run in found]),
        }
        for size, found in runs.items()
    ]
    best = min(rows, key=lambda row: row["seconds"]["median"])
    for row in rows:
        row["times_the_best"] = round(row["seconds"]["median"] / best["seconds"]["median"], 2)
    print_table(
        f"{units} units of 1-1 for each of two policies ({kind})",
        rows,
        ["environments", "seconds", "network_share", "steps_per_second", "times_the_best"],
    )
    print(f"\nbest batch size: {best['environments']} environments")
    return finish("evaluation", rows, [], quick=arguments.quick)


if __name__ == "__main__":
    raise SystemExit(main())
