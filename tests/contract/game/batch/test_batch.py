"""Each implementation of a batch keeps the contract."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from pydantic import ValidationError

from mario.config.game import GameConfig
from mario.errors import ConfigError, ConsoleError, SaveStateError
from mario.game.batch.contract import EpisodeSpec, GameBatch
from mario.game.batch.oracle import ConsoleBatch
from mario.game.console.contract import UInt8Array
from mario.game.console.factory import open_console
from mario.game.rng import SplitMix64
from mario.game.smb.actions import button_bytes
from mario.game.smb.end_reason import EndReason
from mario.game.smb.memory import STATE_DTYPE, Ram, read_state
from mario.game.smb.observations.pixels import OBSERVATION_SHAPE, area_resize, grey
from mario.game.smb.stage import start_level

MakeBatch = Callable[..., GameBatch]
BUTTONS = button_bytes("simple")
RIGHT_B = 3


def game(**changes: object) -> GameConfig:
    """The game of these tests, with some settings changed."""
    return GameConfig.model_validate({"actions": "simple", "max_steps": 40, **changes})


def buffer(slots: int) -> UInt8Array:
    return np.zeros((slots, *OBSERVATION_SHAPE), np.uint8)


def policy(step: int, episode: int) -> int:
    """Choose an action that depends on the step and the episode only."""
    return (1, 3, 4, 2, 3, 5, 3, 6)[(step // 3 + episode) % 8]


@dataclass
class Trace:
    """The observations and values of one episode."""

    observations: list[bytes] = field(default_factory=list)
    rows: list[tuple[object, ...]] = field(default_factory=list)

    @property
    def end(self) -> EndReason:
        return EndReason(int(self.rows[-1][3]))  # type: ignore[call-overload]


def play(batch: GameBatch, specs: list[EpisodeSpec]) -> list[Trace]:
    """Play all specs over the batch's slots; traces in the order of the specs."""
    slots, out = batch.slots, buffer(batch.slots)
    traces = [Trace() for _ in specs]
    waiting = list(range(len(specs)))
    current: list[int | None] = [None] * slots
    queued: list[int | None] = [None] * slots
    steps = [0] * slots
    for slot in range(min(slots, len(specs))):
        current[slot] = waiting.pop(0)
        batch.begin(slot, specs[current[slot] or 0], out)
        traces[current[slot] or 0].observations.append(out[slot].tobytes())
    while any(index is not None for index in current):
        for slot in range(slots):
            if current[slot] is not None and queued[slot] is None and waiting:
                queued[slot] = waiting.pop(0)
                batch.queue(slot, specs[queued[slot] or 0])
        actions = np.array(
            [0 if i is None else policy(steps[s], i) for s, i in enumerate(current)], np.int64
        )
        result = batch.step(actions, out)
        for slot, index in enumerate(current):
            assert bool(result.active[slot]) == (index is not None)
            if index is None:
                continue
            steps[slot] += 1
            ended = result.end[slot] != EndReason.RUNNING
            seen = result.terminal_observations[slot] if ended else out[slot]
            traces[index].observations.append(seen.tobytes())
            traces[index].rows.append(
                (
                    result.before[slot].item(),
                    result.after[slot].item(),
                    int(result.furthest_x_px[slot]),
                    int(result.end[slot]),
                    int(result.steps[slot]),
                    int(result.frames[slot]),
                    int(result.game_reward[slot]),
                )
            )
            if ended:
                current[slot], queued[slot] = queued[slot], None
                steps[slot] = 0
                following = current[slot]
                if following is not None:
                    traces[following].observations.append(out[slot].tobytes())
    return traces


SPECS = [EpisodeSpec(level, seed) for seed, level in enumerate(["1-1", "1-1", "5-3", "2-2"])]


def test_episodes_do_not_depend_on_the_number_of_slots(make_batch: MakeBatch) -> None:
    alone = play(make_batch(1, game()), SPECS)
    assert play(make_batch(3, game()), SPECS) == alone


def test_episodes_do_not_depend_on_slot_order_or_threads(make_batch: MakeBatch) -> None:
    """The same spec and actions in another slot, beside other games, on one thread."""
    spec = EpisodeSpec("1-1", 99)
    others = [EpisodeSpec("1-2", 5), EpisodeSpec("5-3", 6)]
    first = play(make_batch(1, game()), [spec])[0]
    batch = make_batch(3, game(), threads=1)
    out = buffer(3)
    for slot, other in zip((0, 1), others, strict=True):
        batch.begin(slot, other, out)
    batch.begin(2, spec, out)
    assert out[2].tobytes() == first.observations[0]
    for index in range(10):
        result = batch.step(np.array([5, 6, policy(index, 0)], np.int64), out)
        assert out[2].tobytes() == first.observations[index + 1]
        assert int(result.furthest_x_px[2]) == first.rows[index][2]


def test_the_reference_over_nes_py_gives_the_same_episodes(make_batch: MakeBatch) -> None:
    """A batch that is consistent with itself and still wrong fails this."""
    settings = game(max_steps=25)
    reference = play(ConsoleBatch(1, game(max_steps=25, console="nes-py")), SPECS[1:3])
    assert play(make_batch(2, settings), SPECS[1:3]) == reference


def test_seeds_change_the_episode(make_batch: MakeBatch) -> None:
    batch = make_batch(2, game())
    traces = [play(batch, [EpisodeSpec("1-1", seed)])[0] for seed in (1, 2, 1)]
    assert traces[0] == traces[2]
    assert traces[0].rows != traces[1].rows


def test_without_noise_all_seeds_are_one_episode(make_batch: MakeBatch) -> None:
    """Without frames of no input and sticky actions, all seeds give one episode."""
    settings = game(no_op_max_frames=0, sticky_probability=0.0, max_steps=12)
    batch = make_batch(1, settings)
    assert play(batch, [EpisodeSpec("1-1", 1)]) == play(batch, [EpisodeSpec("1-1", 2)])


def test_start_no_ops_and_sticky_frames_follow_the_generator(make_batch: MakeBatch) -> None:
    """Compute a step again, frame by frame, from the definition."""
    seed = 4
    batch, out = make_batch(1, game()), buffer(1)
    batch.begin(0, EpisodeSpec("1-1", seed), out)
    generator = SplitMix64(seed)
    console = open_console("nes-py")
    start_level(console, "1-1")
    console.step(0, generator.below(31))
    assert batch.states()[0] == read_state(console.ram)
    seen = 0
    for action in (RIGHT_B, 5, 6, 1, RIGHT_B):
        batch.step(np.array([action], np.int64), out)
        for _ in range(4):
            if generator.uniform() >= 0.25:
                seen = BUTTONS[action]
            console.step(seen)
    assert batch.states()[0] == read_state(console.ram)
    assert np.array_equal(batch.screen_rgb(0), console.screen_rgb())
    assert np.array_equal(out[0, -1], area_resize(console.screen_grey()))


def test_max_pooling_takes_the_maximum_of_the_last_two_pictures(make_batch: MakeBatch) -> None:
    quiet = game(no_op_max_frames=0, sticky_probability=0.0)
    batch, out = make_batch(1, quiet.model_copy(update={"max_pool": True})), buffer(1)
    batch.begin(0, EpisodeSpec("1-1", 0), out)
    console = open_console("nes-py")
    start_level(console, "1-1")
    for _ in range(6):
        batch.step(np.array([RIGHT_B], np.int64), out)
        console.step(BUTTONS[RIGHT_B], 3)
        third = grey(console.screen_rgb())
        console.step(BUTTONS[RIGHT_B])
        expected = area_resize(np.maximum(third, grey(console.screen_rgb())))
        assert np.array_equal(out[0, -1], expected)


def test_stack_starts_with_one_frame_four_times_and_slides(make_batch: MakeBatch) -> None:
    batch, out = make_batch(1, game()), buffer(1)
    batch.begin(0, EpisodeSpec("1-1", 0), out)
    assert all(np.array_equal(out[0, 0], out[0, i]) for i in range(4))
    before = out.copy()
    batch.step(np.array([RIGHT_B], np.int64), out)
    assert np.array_equal(out[0, :-1], before[0, 1:])
    assert not np.array_equal(out[0, -1], before[0, -1])


def test_step_limit_truncates_and_an_empty_queue_idles(make_batch: MakeBatch) -> None:
    batch, out = make_batch(2, game(max_steps=3)), buffer(2)
    batch.begin(0, EpisodeSpec("1-1", 0), out)
    batch.begin(1, EpisodeSpec("1-1", 1), out)
    batch.queue(0, EpisodeSpec("5-3", 2))
    actions = np.zeros(2, np.int64)
    for _ in range(2):
        assert not batch.step(actions, out).end.any()
    result = batch.step(actions, out)
    assert result.end.tolist() == [EndReason.TRUNCATED] * 2
    assert batch.states()[0]["world"] == 5
    assert not np.array_equal(result.terminal_observations[0], out[0])
    result = batch.step(actions, out)
    assert result.active.tolist() == [True, False]
    assert result.steps[0] == 1


def test_stuck_limit_counts_steps_without_new_furthest_x(make_batch: MakeBatch) -> None:
    quiet = game(stuck_limit_steps=5, no_op_max_frames=0, sticky_probability=0.0)
    batch, out = make_batch(1, quiet), buffer(1)
    batch.begin(0, EpisodeSpec("1-1", 0), out)
    for _ in range(4):
        assert batch.step(np.array([RIGHT_B], np.int64), out).end[0] == EndReason.RUNNING
    ends = []
    for _ in range(12):
        result = batch.step(np.array([6], np.int64), out)  # left
        ends.append(int(result.end[0]))
        if ends[-1]:
            break
    # Mario slides on for a step or two before he turns, then five steps pass.
    assert ends[-1] == EndReason.TRUNCATED
    assert 5 <= len(ends) <= 9


def test_death_ends_the_episode_in_the_frame_it_happens(make_batch: MakeBatch) -> None:
    quiet = game(no_op_max_frames=0, sticky_probability=0.0, max_steps=200)
    trace = Trace()
    batch, out = make_batch(1, quiet), buffer(1)
    batch.begin(0, EpisodeSpec("1-1", 0), out)
    while True:
        result = batch.step(np.array([1], np.int64), out)  # walk into the first enemy
        trace.rows.append((int(result.end[0]),))
        if result.end[0]:
            break
    assert result.end[0] == EndReason.DEATH
    assert result.after[0]["dying"] == 1
    assert result.frames[0] <= 4 * result.steps[0]
    assert 280 <= result.furthest_x_px[0] <= 340
    assert result.game_reward[0] <= -10


def test_the_games_own_clock_ends_the_episode(make_batch: MakeBatch) -> None:
    """From a save-state with two units of the clock left, away from enemies."""
    quiet = game(no_op_max_frames=0, sticky_probability=0.0, max_steps=200)
    batch, out = make_batch(1, quiet), buffer(1)
    console = open_console("nes-py" if isinstance(batch, ConsoleBatch) else "native")
    start_level(console, "1-2")
    for address, digit in enumerate((0, 0, 2), Ram.TIME):
        console.poke(address, digit)
    batch.begin(0, EpisodeSpec("1-2", 0, console.save_state()), out)
    clock = []
    while True:
        result = batch.step(np.zeros(1, np.int64), out)
        clock.append(int(result.after[0]["time_left"]))
        if result.end[0]:
            break
    assert result.end[0] == EndReason.TIME_OUT
    assert (clock[0], clock[-1]) == (2, 0)
    assert result.after[0]["dying"] == 1


def test_snapshot_goes_on_exactly_even_with_what_is_queued(make_batch: MakeBatch) -> None:
    settings = game(max_steps=12)
    batch, out = make_batch(2, settings), buffer(2)
    batch.begin(0, EpisodeSpec("1-1", 11), out)
    batch.begin(1, EpisodeSpec("5-3", 12), out)
    batch.queue(0, EpisodeSpec("2-2", 13))
    for index in range(7):
        batch.step(np.array([policy(index, 0), 0], np.int64), out)
    snapshot, seen = batch.snapshot(0), out[0].copy()

    def go_on(games: GameBatch, slot: int, observations: UInt8Array) -> list[object]:
        rows: list[object] = []
        for index in range(10):
            actions = np.full(games.slots, policy(index, 1), np.int64)
            result = games.step(actions, observations)
            rows.append(
                (
                    result.after[slot].item(),
                    int(result.end[slot]),
                    int(result.game_reward[slot]),
                    observations[slot].tobytes(),
                )
            )
        return rows

    expected = go_on(batch, 0, out)
    other, fresh = make_batch(2, settings), buffer(2)
    other.begin(0, EpisodeSpec("1-1", 0), fresh)
    other.restore(1, snapshot, fresh)
    assert np.array_equal(fresh[1], seen)
    assert go_on(other, 1, fresh) == expected


def test_broken_snapshots_are_refused(make_batch: MakeBatch) -> None:
    batch, out = make_batch(1, game()), buffer(1)
    batch.begin(0, EpisodeSpec("1-1", 0), out)
    snapshot = batch.snapshot(0)
    middle = len(snapshot) // 2
    flipped = snapshot[:middle] + bytes([snapshot[middle] ^ 1]) + snapshot[middle + 1 :]
    for broken in (b"", snapshot[:20], snapshot[:-1], flipped):
        with pytest.raises(SaveStateError):
            batch.restore(0, broken, out)


def test_forged_snapshots_are_refused_or_harmless(make_batch: MakeBatch) -> None:
    """The checksum is valid; a refused snapshot leaves the slot unchanged."""
    batch, out = make_batch(1, game(no_op_max_frames=0)), buffer(1)
    batch.begin(0, EpisodeSpec("1-1", 0), out)
    genuine = batch.snapshot(0)
    # Offsets of checksum and body: after the magic number, and the native batch's version.
    at, body = (4, 8) if isinstance(batch, ConsoleBatch) else (6, 10)
    generator, refused = np.random.default_rng(3), 0
    for _ in range(40):
        forged = bytearray(genuine)
        for place in generator.integers(body, body + 60, generator.integers(1, 4)):
            forged[place] = int(generator.integers(0, 256))
        if generator.random() < 0.2:
            del forged[int(generator.integers(body, len(forged))) :]
        forged[at : at + 4] = struct.pack("<I", zlib.crc32(forged[body:]))
        batch.restore(0, genuine, out)
        try:
            batch.restore(0, bytes(forged), out)
        except SaveStateError:
            refused += 1
            assert batch.snapshot(0) == genuine
        else:
            batch.step(np.array([RIGHT_B], np.int64), out)
    assert refused >= 5


def test_episodes_start_from_a_save_state(make_batch: MakeBatch) -> None:
    quiet = game(no_op_max_frames=0, sticky_probability=0.0)
    batch, out = make_batch(2, quiet), buffer(2)
    batch.begin(0, EpisodeSpec("1-1", 0), out)
    for _ in range(8):
        batch.step(np.array([RIGHT_B, 0], np.int64), out)
    state, x_px = batch.console_state(0), int(batch.states()[0]["x_px"])
    assert x_px > 60
    batch.begin(1, EpisodeSpec("1-1", 1, state), out)
    assert int(batch.states()[1]["x_px"]) == x_px
    assert np.array_equal(out[1, -1], out[0, -1])
    for action in (RIGHT_B, 5, 6):
        result = batch.step(np.array([action, action], np.int64), out)
        assert result.after[1] == result.after[0]
        assert np.array_equal(out[1, -1], out[0, -1])
    assert result.steps.tolist() == [11, 3]
    with pytest.raises(SaveStateError):
        batch.begin(1, EpisodeSpec("1-1", 1, b"nonsense"), out)


def test_the_whole_game_goes_on_after_a_death(make_batch: MakeBatch) -> None:
    settings = game(max_steps=400, no_op_max_frames=0, sticky_probability=0.0)
    batch, out = make_batch(1, settings), buffer(1)
    batch.begin(0, EpisodeSpec(None, 0), out)
    lives = []
    for _ in range(300):
        result = batch.step(np.array([1], np.int64), out)
        lives.append(int(result.after[0]["life"]))
        if result.end[0]:
            break
    assert result.end[0] == EndReason.DEATH
    assert lives[-1] == 255
    assert {2, 1, 0} <= set(lives)


def test_the_last_axe_wins_the_whole_game(make_batch: MakeBatch) -> None:
    batch, out = make_batch(1, game()), buffer(1)
    batch.begin(0, EpisodeSpec(None, 0), out)
    console = open_console("nes-py" if isinstance(batch, ConsoleBatch) else "native")
    console.load_state(batch.console_state(0))
    console.poke(Ram.WORLD, 7)  # world 8 …
    console.poke(Ram.MODE, 2)  # … is over
    settings = game(no_op_max_frames=0)
    batch = make_batch(1, settings)
    batch.begin(0, EpisodeSpec(None, 0, console.save_state()), out)
    assert batch.step(np.array([1], np.int64), out).end[0] == EndReason.FLAG


def test_states_have_the_thirteen_values(make_batch: MakeBatch) -> None:
    batch, out = make_batch(2, game()), buffer(2)
    batch.begin(1, EpisodeSpec("1-1", 0), out)
    states = batch.states()
    assert states.dtype == STATE_DTYPE
    assert len(STATE_DTYPE) == 13
    assert states.shape == (2,)
    assert states[1]["time_left"] in (399, 400, 401)


@pytest.mark.parametrize(
    "actions",
    [np.array([7, 0]), np.array([-1, 0]), np.array([0]), np.zeros((2, 1), np.int64)],
)
def test_impossible_actions_are_refused_and_nothing_moves(
    make_batch: MakeBatch, actions: np.ndarray
) -> None:
    batch, out = make_batch(2, game()), buffer(2)
    for slot in (0, 1):
        batch.begin(slot, EpisodeSpec("1-1", slot), out)
    before = batch.states()
    with pytest.raises(ConsoleError, match="expected"):
        batch.step(actions, out)
    assert np.array_equal(batch.states(), before)


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((1, 4, 84, 84), np.uint8),
        np.zeros((2, 4, 84, 84), np.float32),
        np.zeros((2, 84, 84, 4), np.uint8).transpose(0, 3, 1, 2),
    ],
)
def test_impossible_buffers_are_refused(make_batch: MakeBatch, out: np.ndarray) -> None:
    batch = make_batch(2, game())
    with pytest.raises(ConsoleError, match="C-contiguous"):
        batch.begin(0, EpisodeSpec("1-1", 0), out)


def test_unknown_levels_are_refused(make_batch: MakeBatch) -> None:
    with pytest.raises(ConfigError, match="expected"):
        make_batch(1, game()).begin(0, EpisodeSpec("0-1", 0), buffer(1))


@pytest.mark.parametrize(("buttons", "threads"), [((), 2), ((300,), 2), ((-1,), 2), ((1,), -1)])
def test_impossible_settings_are_refused(
    make_batch: MakeBatch, buttons: tuple[int, ...], threads: int
) -> None:
    with pytest.raises(ConfigError, match="threads" if threads < 0 else "buttons"):
        make_batch(1, game(), buttons, threads)


@pytest.mark.parametrize(
    "change",
    [{"frame_skip": 0}, {"sticky_probability": 1.0}, {"no_op_max_frames": -1}, {"max_steps": 0}],
)
def test_an_impossible_game_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        game(**change)
