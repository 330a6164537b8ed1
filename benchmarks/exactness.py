"""Two million frames on the native console and on nes-py, compared after every frame.

    python benchmarks/exactness.py [--quick] [--frames 2000000] [--processes CORES] [--minutes M]

Every level is played again and again: along a playthrough to its flag or axe, off it half-way, up
its vine where one is known, and on at random. What was come through is counted from the game's
memory: pipes, vines, water, castles, wrong paths that loop, deaths, poles, axes. Memory and picture
are compared after each frame, and now and then the native console is replaced by one restored from
its save-state. One difference ends the run. nes-py takes more than an hour of two cores for it;
`--minutes` stops earlier and says how far it came. The same sources of nes-py, compiled with a
profile (`scripts/fast_oracle.sh build/oracle`), take half as long:
`PYTHONPATH=build/oracle python benchmarks/exactness.py`. The result says which build was played.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import nes_py

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._report import Row, cores, finish, print_table, target
from mario.config.levels import LEVEL_NAMES
from tests.support.lockstep import LockstepConsole, Sights, check_native_is_built, play

FRAMES_PER_PLAY = 4000
# What two million frames must have come through to count as real play of the whole game.
SEEN = {
    "pipes": 80, "vines": 4, "loops": 20, "water_frames": 50_000, "castle_frames": 200_000,
    "deaths": 500, "poles": 150, "axes": 50, "restores": 10_000,
}  # fmt: skip
COUNTS = (*Sights.NAMES, "restores")


def play_one(job: tuple[str | None, int]) -> tuple[str, dict[str, int]]:
    """Play one level once; raises Divergence when the consoles differ."""
    level, seed = job
    return level or "whole game", play(LockstepConsole(seed), level, FRAMES_PER_PLAY, seed)


def oracle_build() -> str:
    """Which build of nes-py is played: its version and how its library was made."""
    note = Path(nes_py.__file__).with_name("BUILD")
    how = note.read_text().strip() if note.exists() else "as installed"
    return f"nes-py {version('nes-py')}, {how}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="about half a minute, nothing written")
    parser.add_argument("--frames", type=int, default=2_000_000)
    parser.add_argument("--processes", type=int, default=cores())
    parser.add_argument("--minutes", type=float, default=float("inf"))
    arguments = parser.parse_args()
    check_native_is_built()
    goal = 8_000 if arguments.quick else arguments.frames
    plays: tuple[str | None, ...] = (*LEVEL_NAMES, None)
    rounds = -(-goal // (FRAMES_PER_PLAY * len(plays)))
    jobs = [(level, seed) for seed in range(rounds) for level in plays]
    jobs = jobs[: max(-(-goal // FRAMES_PER_PLAY), 1)] if arguments.quick else jobs

    counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNTS, 0))
    began, shown, done = time.monotonic(), 0.0, 0
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for level, played in pool.imap_unordered(play_one, jobs):
            for name, count in played.items():
                counts[level][name] += count
            done += played["frames"]
            if time.monotonic() - shown > 60:
                shown = time.monotonic()
                print(f"{done:,} frames, {shown - began:.0f} s, no difference", flush=True)
            if time.monotonic() - began > 60 * arguments.minutes:
                break
    rows: list[Row] = [
        {"level": level, **counts[level]}
        for level in itertools.chain(LEVEL_NAMES, ["whole game"])
        if level in counts
    ]
    total = {name: sum(int(row[name]) for row in rows) for name in COUNTS}
    rows.append({"level": "all", **total, "oracle": oracle_build()})
    print(f"the oracle: {oracle_build()}")
    print_table("Frames compared, all equal", rows, ("level", *COUNTS))
    targets = [
        target("frames compared without a difference", goal, total["frames"]),
        target("levels played", 2 if arguments.quick else len(LEVEL_NAMES), len(rows) - 2),
    ]
    if not arguments.quick:
        ended = sum(counts[level]["poles"] + counts[level]["axes"] > 0 for level in LEVEL_NAMES)
        targets.append(target("levels whose pole or axe was reached", len(LEVEL_NAMES), ended))
        targets += [target(f"{name} seen", SEEN[name], total[name]) for name in SEEN]
    return finish("exactness", rows, targets, quick=arguments.quick)


if __name__ == "__main__":
    raise SystemExit(main())
