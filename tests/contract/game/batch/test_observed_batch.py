"""A batch with another kind of observation keeps the contract and shows the present state."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mario.config.game import GameConfig
from mario.errors import ConfigError, ConsoleError, SaveStateError
from mario.game.batch.contract import EpisodeSpec, GameBatch
from mario.game.batch.observed import ObservedBatch
from mario.game.console.contract import UInt8Array
from mario.game.smb.memory import Ram
from mario.game.smb.observations.contract import ObservationKind, Observations
from mario.game.smb.observations.factory import kind_of_version, observation_kind

MakeBatch = Callable[..., GameBatch]
GAME = GameConfig(max_steps=9, no_op_max_frames=4)


def look(pixels: UInt8Array, ram: UInt8Array) -> Observations:
    """Mario's x, the clock's last digit, and the brightness of the newest frame."""
    seen = [
        ram[:, Ram.PLAYER_PAGE] * np.float32(256) + ram[:, Ram.PLAYER_X],
        ram[:, Ram.TIME + 2],
        pixels[:, -1].mean(axis=(1, 2)),
    ]
    return np.stack(seen, axis=1).astype(np.float32)


KIND = ObservationKind("look", "look-v1", (3,), "float32", look)


def test_observations_are_those_of_the_games_now(make_batch: MakeBatch) -> None:
    games, raw = ObservedBatch(make_batch(2, GAME), KIND), make_batch(2, GAME)
    seen, pixels = KIND.zeros(2), raw.observation.zeros(2)
    first = [EpisodeSpec("1-1", 1), EpisodeSpec("5-1", 2)]
    for batch, out in ((games, seen), (raw, pixels)):
        for slot, spec in enumerate(first):
            batch.begin(slot, spec, out)
        batch.queue(0, EpisodeSpec("1-2", 3))  # the other slot becomes idle
    ends = 0
    for step in range(14):
        actions = np.array([step % 7, 3], np.int64)
        result, expected = games.step(actions, seen), raw.step(actions, pixels)
        assert result.end.tolist() == expected.end.tolist()
        assert result.active.tolist() == expected.active.tolist()
        ram = np.stack([np.frombuffer(raw.ram(slot), np.uint8) for slot in range(2)])
        np.testing.assert_array_equal(seen[0], look(pixels, ram)[0])
        for slot in np.flatnonzero(result.end):
            ends += 1
            last = result.terminal_observations[slot]
            assert last[0] == result.after["x_px"][slot]
            assert last[2] == np.float32(expected.terminal_observations[slot, -1].mean())
    assert ends == 2
    assert games.states().tolist() == raw.states().tolist()


def test_a_snapshot_goes_on_with_its_queue(make_batch: MakeBatch) -> None:
    games, out = ObservedBatch(make_batch(1, GAME), KIND), KIND.zeros(1)
    games.begin(0, EpisodeSpec("1-1", 1), out)
    games.queue(0, EpisodeSpec("1-2", 2))
    for _ in range(5):
        games.step(np.array([3], np.int64), out)
    snapshot, before = games.snapshot(0), out.copy()

    def rest(batch: ObservedBatch, buffer: Observations) -> list[bytes]:
        shown = []
        for _ in range(12):
            batch.step(np.array([3], np.int64), buffer)
            shown.append(buffer.tobytes() + batch.states().tobytes())
        return shown

    expected = rest(games, out)
    other, again = ObservedBatch(make_batch(1, GAME), KIND), KIND.zeros(1)
    other.restore(0, snapshot, again)
    np.testing.assert_array_equal(again, before)
    assert rest(other, again) == expected
    for broken in (b"", snapshot[:-1], snapshot[:4] + bytes(4) + snapshot[8:]):
        with pytest.raises(SaveStateError, match="the observation look"):
            other.restore(0, broken, again)


def test_buffers_of_another_kind_and_unknown_kinds_are_refused(make_batch: MakeBatch) -> None:
    games = ObservedBatch(make_batch(1, GAME), KIND)
    with pytest.raises(ConsoleError, match=r"C-contiguous float32 \(1, 3\)"):
        games.begin(0, EpisodeSpec("1-1", 1), np.zeros((1, 4, 84, 84), np.uint8))
    with pytest.raises(ConfigError, match="unknown level"):
        games.queue(0, EpisodeSpec("9-9", 1))
    for find in (observation_kind, kind_of_version):
        with pytest.raises(ConfigError, match="unknown observation 'look'"):
            find("look")
    assert kind_of_version("grey-area-84-v1") is observation_kind("pixels")
