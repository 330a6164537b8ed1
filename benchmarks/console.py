"""How fast the native console is, beside nes-py, cynes and stable-retro, and the usual stack.

    python benchmarks/console.py [--quick]

Raw frames on one core, complete agent steps (4 frames, observation, reward, end, auto-reset) on one
core and on all, N from 1 to 512, one thread against two, and memory for each environment. All in
level 1-1; repeats are interleaved, so that a busy moment of the machine hits every row. cynes and
stable-retro are measured where they are installed; they need no more than what is there already:
`pip install --no-deps cynes==0.1.2 stable-retro==1.0.1`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gymnasium
import numpy as np

from benchmarks._report import Row, cores, finish, print_table, spread, target
from mario.config.game import GameConfig
from mario.game.batch.contract import EpisodeSpec
from mario.game.batch.native import NativeBatch
from mario.game.console.cartridge import rom_path
from mario.game.console.native import NativeConsole
from mario.game.console.nes_py import NesPyConsole
from mario.game.smb.actions import button_bytes
from mario.game.smb.observations.pixels import OBSERVATION_SHAPE
from mario.game.smb.stage import start_level
from tests.support.stock_env import UsualStack

BUTTONS = button_bytes("simple")
LEVEL = "1-1"
# nes-py's button bits, most significant first, as positions in cynes' byte and libretro's mask.
_CYNES = (0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80)

Measure = Callable[[float], float]  # seconds to run for -> units in a second


def timed(step: Callable[[], int]) -> Measure:
    """Measure calls of `step`, which returns how many units it did."""

    def measure(seconds: float) -> float:
        done, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            done += step()
        return done / elapsed

    return measure


def held_buttons() -> Callable[[], int]:
    """Right, with jumps: the same for every console."""
    player = random.Random(1)
    return lambda: player.choice((0x80, 0x81, 0x82, 0x83))


def native_frames(*, draw: bool) -> Measure:
    console = NativeConsole(draw=draw)
    start_level(console, LEVEL)
    state, buttons, step = console.save_state(), held_buttons(), console.step
    count = 0

    def ten() -> int:
        nonlocal count
        count += 1
        if count % 60 == 0:
            console.load_state(state)
        held = buttons()
        for _ in range(10):
            step(held)
        return 10

    return timed(ten)


def nes_py_frames() -> Measure:
    console = NesPyConsole()
    start_level(console, LEVEL)
    env, buttons = console._env, held_buttons()
    env._backup()
    count = 0

    def ten() -> int:
        nonlocal count
        count += 1
        if count % 60 == 0:
            env._restore()
        held = buttons()
        for _ in range(10):
            env._frame_advance(held)
        return 10

    return timed(ten)


def cynes_frames() -> Measure:
    from cynes import NES

    nes, buttons = NES(str(rom_path())), held_buttons()
    for _ in range(10):  # through the title screen
        nes.controller = 0x10
        nes.step(5)
        nes.controller = 0
        nes.step(30)
    state, count = nes.save(), 0

    def ten() -> int:
        nonlocal count
        count += 1
        if count % 60 == 0:
            nes.load(state)
        held = buttons()
        nes.controller = sum(bit for i, bit in enumerate(_CYNES) if held >> (7 - i) & 1)
        for _ in range(10):
            nes.step(1)
        return 10

    return timed(ten)


def stable_retro_frames() -> Measure:
    import stable_retro

    emulator = stable_retro.RetroEmulator(str(rom_path()))
    buttons = held_buttons()
    # libretro's NES order: B, nothing, select, start, up, down, left, right, A.
    order = (0x02, 0, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x01)

    def hold(held: int) -> None:
        emulator.set_button_mask(np.array([held & bit != 0 for bit in order], np.uint8), 0)

    for _ in range(10):
        for held, frames in ((0x08, 5), (0, 30)):
            hold(held)
            for _ in range(frames):
                emulator.step()
    state, count = emulator.get_state(), 0

    def ten() -> int:
        nonlocal count
        count += 1
        if count % 60 == 0:
            emulator.set_state(state)
        hold(buttons())
        for _ in range(10):
            emulator.step()
            emulator.get_screen()
        return 10

    return timed(ten)


class UsualEnv(gymnasium.Env[np.ndarray, int]):
    """The usual stack as SB3's SubprocVecEnv wants it."""

    observation_space = gymnasium.spaces.Box(0, 255, OBSERVATION_SHAPE, np.uint8)
    action_space = gymnasium.spaces.Discrete(len(BUTTONS))

    def __init__(self) -> None:
        self._stack = UsualStack(LEVEL, BUTTONS)

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode."""
        return self._stack.reset(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Play four frames."""
        observation, reward, done, info = self._stack.step(int(action))
        return observation, reward, done, False, info


def usual_steps() -> Measure:
    stack, player = UsualStack(LEVEL, BUTTONS), random.Random(1)
    stack.reset()

    def one() -> int:
        if stack.step(player.randrange(len(BUTTONS)))[2]:
            stack.reset()
        return 1

    return timed(one)


def subprocess_steps(processes: int) -> tuple[Measure, Callable[[], None]]:
    from stable_baselines3.common.vec_env import SubprocVecEnv

    envs = SubprocVecEnv([UsualEnv] * processes, start_method="forkserver")
    envs.reset()
    player = np.random.default_rng(1)

    def one() -> int:
        envs.step(player.integers(len(BUTTONS), size=processes))
        return processes

    return timed(one), envs.close


def native_steps(slots: int, threads: int) -> Measure:
    batch = NativeBatch(slots, GameConfig(), BUTTONS, threads)
    out = np.zeros((slots, *OBSERVATION_SHAPE), np.uint8)
    for slot in range(slots):
        batch.begin(slot, EpisodeSpec(LEVEL, slot), out)
        batch.queue(slot, EpisodeSpec(LEVEL, slots + slot))
    player = np.random.default_rng(1)
    seed = 2 * slots

    def one() -> int:
        nonlocal seed
        result = batch.step(player.integers(len(BUTTONS), size=slots), out)
        for slot in np.flatnonzero(result.end):
            batch.queue(int(slot), EpisodeSpec(LEVEL, seed))
            seed += 1
        return slots

    return timed(one)


def memory_per_environment_mb(slots: int = 256) -> float:
    """Resident memory that each further game of a batch takes, observation buffers included."""
    program = f"""
import numpy as np
from benchmarks.console import BUTTONS, LEVEL
from mario.config.game import GameConfig
from mario.game.batch.contract import EpisodeSpec
from mario.game.batch.native import NativeBatch
def resident():
    pages = int(open('/proc/self/statm').read().split()[1])
    import resource
    return pages * resource.getpagesize()
def play(n):
    batch = NativeBatch(n, GameConfig(), BUTTONS, threads=1)
    out = np.zeros((n, 4, 84, 84), np.uint8)
    for slot in range(n):
        batch.begin(slot, EpisodeSpec(LEVEL, slot), out)
    for _ in range(3):
        batch.step(np.ones(n, np.int64), out)
    return batch, out
few = play(1)
before = resident()
many = play({slots})
print((resident() - before) / {slots} / 1e6)
"""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def interleave(
    measures: dict[str, Measure], repeats: int, seconds: float
) -> dict[str, list[float]]:
    """Run every measure in turn, `repeats` times."""
    results: dict[str, list[float]] = {name: [] for name in measures}
    for measure in measures.values():
        measure(seconds / 4)  # warm up
    for _ in range(repeats):
        for name, measure in measures.items():
            results[name].append(measure(seconds))
    return results


def ratio(results: dict[str, list[float]], name: str, base: str) -> float:
    """Median over the repeats of one row's rate by another's in the same repeat."""
    return statistics.median(a / b for a, b in zip(results[name], results[base], strict=True))


def raw_frames(repeats: int, seconds: float) -> tuple[list[Row], float]:
    makers: dict[str, Callable[[], Measure]] = {
        "nes-py, drawn": nes_py_frames,
        "cynes, drawn": cynes_frames,
        "stable-retro (fceumm), drawn": stable_retro_frames,
        "native, drawn": lambda: native_frames(draw=True),
        "native, not drawn": lambda: native_frames(draw=False),
    }
    measures: dict[str, Measure] = {}
    rows: list[Row] = []
    for name, make in makers.items():
        try:
            measures[name] = make()
        except ImportError as error:
            rows.append({"console": name, "note": f"not measured: {error}"})
    results = interleave(measures, repeats, seconds)
    for name, rates in results.items():
        times = round(ratio(results, name, "nes-py, drawn"), 2)
        rows.append({"console": name, "frames_per_second": spread(rates), "times_nes_py": times})
    print_table(
        "Raw frames, one core", rows, ("console", "frames_per_second", "times_nes_py", "note")
    )
    return rows, ratio(results, "native, drawn", "nes-py, drawn")


def agent_steps(repeats: int, seconds: float, *, quick: bool) -> tuple[list[Row], dict[str, float]]:
    threads = cores()
    usual_all, close = subprocess_steps(threads)
    measures = {"usual stack, 1 process": usual_steps(),
                f"usual stack, SubprocVecEnv of {threads}": usual_all}  # fmt: skip
    sizes = (1, 16, 64) if quick else (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    for slots in sizes:
        measures[f"native, N={slots}, 1 thread"] = native_steps(slots, 1)
        if slots >= 2 and threads > 1:
            measures[f"native, N={slots}, 2 threads"] = native_steps(slots, 2)
    if threads > 2:
        measures[f"native, N=64, {threads} threads"] = native_steps(64, threads)
    results = interleave(measures, repeats, seconds)
    close()
    base, base_all = list(measures)[:2]
    rows: list[Row] = [
        {
            "stack": name,
            "steps_per_second": spread(rates),
            "times_usual": round(ratio(results, name, base), 2),
            "times_subproc": round(ratio(results, name, base_all), 2),
        }
        for name, rates in results.items()
    ]
    print_table("Complete agent steps, level 1-1", rows,
                ("stack", "steps_per_second", "times_usual", "times_subproc"))  # fmt: skip
    in_all = f"native, N=64, {max(threads, 1)} threads" if threads > 1 else "native, N=64, 1 thread"
    ratios = {
        "per core": ratio(results, "native, N=16, 1 thread", base),
        "all cores": ratio(results, in_all, base_all),
    }
    if threads > 1:
        ratios["2 threads"] = min(
            ratio(results, f"native, N={n}, 2 threads", f"native, N={n}, 1 thread")
            for n in sizes if n >= 16
        )  # fmt: skip
    return rows, ratios


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute, nothing written")
    quick = parser.parse_args().quick
    repeats, seconds = (3, 0.3) if quick else (7, 1.0)
    frame_rows, drawn = raw_frames(repeats, seconds)
    step_rows, ratios = agent_steps(repeats, seconds, quick=quick)
    memory = memory_per_environment_mb()
    print(f"\nMemory for each environment: {memory:.3f} MB")
    targets = [
        target("raw frames/s drawn, times nes-py", 15, drawn),
        target("agent steps/s a core, times the usual stack", 25, ratios["per core"]),
        target("agent steps/s on all cores, times SubprocVecEnv", 25, ratios["all cores"]),
        target("memory for each environment, MB", 0.5, memory, at_most=True),
    ]
    if "2 threads" in ratios:
        targets.append(target("2 threads, times 1 thread, worst N >= 16", 1.7, ratios["2 threads"]))
    rows = [*frame_rows, *step_rows, {"memory_per_environment_mb": round(memory, 4)}]
    return finish("console", rows, targets, quick=quick)


if __name__ == "__main__":
    raise SystemExit(main())
