"""The guarantees of the native batch beyond the contract of all batches."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mario.config.game import GameConfig
from mario.config.levels import LEVEL_NAMES
from mario.errors import ConfigError, ConsoleError, SaveStateError
from mario.game.batch.contract import EpisodeSpec
from mario.game.batch.native import NativeBatch
from mario.game.batch.oracle import ConsoleBatch
from mario.game.console.native import NativeConsole
from mario.game.smb.end_reason import EndReason
from mario.game.smb.memory import MAX_X_PX, Ram
from mario.game.smb.observations.pixels import OBSERVATION_SHAPE
from mario.game.smb.stage import start_level


def game(**changes: object) -> GameConfig:
    """The game of these tests, with some settings changed."""
    return GameConfig.model_validate({"actions": "complex", "max_steps": 120, **changes})


def trajectories(slots: int, threads: int, episodes: int) -> dict[int, list[bytes]]:
    """Play each seed's episode in the next free slot; give what each showed."""
    batch = NativeBatch(slots, game(), threads=threads)
    out = np.zeros((slots, *OBSERVATION_SHAPE), np.uint8)
    players = [np.random.default_rng(seed) for seed in range(episodes)]
    seen: dict[int, list[bytes]] = {}
    waiting = list(range(episodes))
    current: list[int | None] = [None] * slots
    while True:
        for slot in range(slots):
            if current[slot] is None and waiting:
                seed = current[slot] = waiting.pop(0)
                batch.begin(slot, EpisodeSpec(LEVEL_NAMES[seed % 32], seed), out)
                seen[seed] = [out[slot].tobytes()]
        if all(seed is None for seed in current):
            batch.close()
            return seen
        actions = np.array([0 if s is None else players[s].integers(12) for s in current])
        result = batch.step(actions, out)
        for slot, seed in enumerate(current):
            if seed is not None:
                seen[seed].append(out[slot].tobytes() + result.after[slot].tobytes())
                if result.end[slot]:
                    current[slot] = None


def test_threads_slots_and_order_change_nothing() -> None:
    alone = trajectories(1, 1, 8)
    assert len(alone) == 8
    assert trajectories(3, 2, 8) == alone
    assert trajectories(8, 4, 8) == alone


def test_python_and_native_play_the_same_whole_game() -> None:
    settings = game(max_steps=400, no_op_max_frames=7, max_pool=True)
    spec = EpisodeSpec(None, 3)
    batches = (ConsoleBatch(1, settings), NativeBatch(1, settings))
    outs = [np.zeros((1, *OBSERVATION_SHAPE), np.uint8) for _ in batches]
    for batch, out in zip(batches, outs, strict=True):
        batch.begin(0, spec, out)
    lives = set()
    for step in range(400):
        action = np.array([(2, 4, 4, 3)[step // 5 % 4]], np.int64)
        results = [b.step(action, o) for b, o in zip(batches, outs, strict=True)]
        assert results[0].after[0] == results[1].after[0]
        assert results[0].game_reward[0] == results[1].game_reward[0]
        assert np.array_equal(outs[0], outs[1])
        assert results[0].end[0] == results[1].end[0]
        lives.add(int(results[0].after[0]["life"]))
        if results[0].end[0]:
            break
    assert lives == {2, 1, 0, 255}
    assert results[0].end[0] == EndReason.DEATH


@pytest.mark.parametrize("level", ["1-4", "2-2", "4-2", "8-3"])
def test_python_and_native_play_the_same_levels(level: str) -> None:
    settings = game(max_steps=60)
    batches = (ConsoleBatch(1, settings), NativeBatch(1, settings))
    outs = [np.zeros((1, *OBSERVATION_SHAPE), np.uint8) for _ in batches]
    for batch, out in zip(batches, outs, strict=True):
        batch.begin(0, EpisodeSpec(level, 17), out)
    player = np.random.default_rng(4)
    for _ in range(60):
        action = player.integers(12, size=1)
        results = [b.step(action, o) for b, o in zip(batches, outs, strict=True)]
        for name in ("before", "after", "furthest_x_px", "end", "steps", "frames", "game_reward"):
            assert getattr(results[0], name)[0] == getattr(results[1], name)[0], name
        assert np.array_equal(outs[0], outs[1])
        if results[0].end[0]:
            break


def test_a_console_and_a_batch_share_save_states() -> None:
    batch = NativeBatch(1, game())
    out = np.zeros((1, *OBSERVATION_SHAPE), np.uint8)
    batch.begin(0, EpisodeSpec("3-1", 1), out)
    batch.step(np.array([4]), out)
    console = NativeConsole()
    console.load_state(batch.console_state(0))
    assert console.ram.tobytes() == batch.ram(0)
    assert np.array_equal(console.screen_rgb(), batch.screen_rgb(0))


def test_what_is_queued_is_checked_when_it_is_queued() -> None:
    batch = NativeBatch(1, game())
    with pytest.raises(SaveStateError, match="expected"):
        batch.queue(0, EpisodeSpec("1-1", 0, b"nonsense"))
    with pytest.raises(ConfigError, match="unknown level"):
        batch.queue(0, EpisodeSpec("9-9", 0))
    with pytest.raises(ConsoleError, match="slot 1"):
        batch.queue(1, EpisodeSpec("1-1", 0))


def test_furthest_x_ignores_a_mario_left_of_the_area() -> None:
    """The loop of 4-4 puts x at 65,535 for some frames."""
    batch = NativeBatch(1, game(no_op_max_frames=0))
    out = np.zeros((1, *OBSERVATION_SHAPE), np.uint8)
    batch.begin(0, EpisodeSpec("4-4", 0), out)
    console = NativeConsole()
    console.load_state(batch.console_state(0))
    console.poke(Ram.PLAYER_PAGE, 0xFF)
    batch.begin(0, EpisodeSpec("4-4", 0, console.save_state()), out)
    result = batch.step(np.array([0]), out)
    assert result.furthest_x_px[0] < MAX_X_PX


def inside(call: Callable[[], object]) -> bool:
    """Tell whether another Python thread runs while `call` does, and not before or after it."""
    gate, within, seen = threading.Lock(), [False], [False]

    def other() -> None:
        with gate:
            seen[0] = within[0]

    interval = sys.getswitchinterval()
    gate.acquire()
    thread = threading.Thread(target=other)
    thread.start()
    # Python itself switches threads after this time only, so the call must release the lock.
    sys.setswitchinterval(100)
    within[0] = True
    gate.release()
    call()
    within[0] = False
    sys.setswitchinterval(interval)
    thread.join()
    return seen[0]


def test_steps_release_the_interpreter_lock() -> None:
    batch = NativeBatch(1, game(frame_skip=20_000), threads=1)
    out = np.zeros((1, *OBSERVATION_SHAPE), np.uint8)
    batch.begin(0, EpisodeSpec("2-2", 0), out)
    standing = np.zeros(1, np.int64)
    assert inside(lambda: batch.step(standing, out))
    console = NativeConsole(draw=False)
    assert inside(lambda: console.step(0, 20_000))
    # The probe can fail: this call lasts as long and keeps the lock.
    assert not inside(lambda: sum(range(20_000_000)))


@pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="counts threads as Linux lists them"
)
def test_the_threads_are_as_many_as_asked_for_and_end_with_the_batch() -> None:
    def threads() -> int:
        return sum(1 for _ in Path("/proc/self/task").iterdir())

    gc.collect()  # batches of other tests have threads, too
    before = threads()
    batch = NativeBatch(4, game(), threads=3)  # the caller is one of them
    assert threads() == before + 2
    batch.close()
    gc.collect()
    assert threads() == before
    alone = NativeBatch(1, game(), threads=3)  # a single game needs no threads
    assert threads() == before
    alone.close()


def test_games_that_get_stuck_fall_idle_and_are_forgotten() -> None:
    """Two games that are paused forever while Mario walks by himself, and one that plays."""
    console = NativeConsole(draw=False)
    start_level(console, "1-1")
    console.poke(Ram.PAUSE, 1)  # paused …
    console.poke(Ram.PLAYER_STATE, 7)  # … in a state without control
    stuck = EpisodeSpec("1-1", 0, console.save_state())
    quiet = game(no_op_max_frames=0, sticky_probability=0.0)
    batch, out = NativeBatch(3, quiet, threads=2), np.zeros((3, *OBSERVATION_SHAPE), np.uint8)
    for slot, spec in enumerate((stuck, stuck, EpisodeSpec("1-1", 0))):
        batch.begin(slot, spec, out)
    actions = np.zeros(3, np.int64)
    with pytest.raises(ConsoleError, match="did not get past"):
        batch.step(actions, out)
    result = batch.step(actions, out)
    assert result.active.tolist() == [False, False, True]
    assert result.steps[2] == 2


def test_a_closed_batch_says_so() -> None:
    batch = NativeBatch(2, game())
    batch.close()
    with pytest.raises(ConsoleError, match="closed"):
        batch.states()


def test_a_forked_process_plays_on_without_the_threads() -> None:
    """The process also ends: it does not wait for threads that could not be started."""
    batch = NativeBatch(4, game(), threads=3)
    out = np.zeros((4, *OBSERVATION_SHAPE), np.uint8)
    for slot in range(4):
        batch.begin(slot, EpisodeSpec("1-1", slot), out)
    batch.step(np.ones(4, np.int64), out)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that hangs is a failure, not a hanging test run
        batch.step(np.ones(4, np.int64), out)
        batch.close()
        os._exit(7)
    batch.step(np.ones(4, np.int64), out)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
