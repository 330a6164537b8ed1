"""The native console equals nes-py and the native game gym-super-mario-bros, bit by bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mario.config.levels import LEVEL_NAMES
from mario.game.batch.contract import EpisodeSpec
from mario.game.batch.native import NativeBatch
from mario.game.console.cartridge import rom_bytes
from mario.game.console.native import NativeConsole
from mario.game.smb import stage
from mario.game.smb.end_reason import EndReason
from mario.game.smb.memory import Ram
from mario.game.smb.observations.pixels import OBSERVATION_SHAPE
from tests.support.lockstep import Divergence, LockstepConsole, play
from tests.support.stock_comparison import BUTTONS, GAME, Comparison, compare
from tests.support.stock_env import stock_env

# Overworld, underground, water, castle, day, night, snow. Every second level is played to its end,
# the others to some point, 6-2 to its vine. The play of 8-4 takes a wrong path, which loops, then
# four pipes and a passage under water to the last axe.
LEVELS = (
    "1-1", "1-3", "1-4", "2-3", "2-2", "3-1", "3-4", "6-2",
    "1-2", "5-2", "4-2", "6-3", "7-2", "5-1", "8-4", "8-1",
)  # fmt: skip
FRAMES_PER_LEVEL = 3800
# iNES header, 32 KiB of program, background tiles after 4 KiB of sprites: tile 0xB4 is ground.
GROUND_TILE_ROW = 16 + 0x8000 + 0x1000 + 16 * 0xB4 + 3


@pytest.mark.timeout(1800)
def test_memory_and_picture_are_those_of_nes_py_on_every_frame() -> None:
    """60,800 frames over 16 levels; two at a time, since nes-py releases the interpreter lock."""

    def one(item: tuple[int, str]) -> dict[str, int]:
        seed, level = item
        return play(LockstepConsole(seed), level, FRAMES_PER_LEVEL, seed)

    with ThreadPoolExecutor(2) as pool:
        played = list(pool.map(one, enumerate(LEVELS)))
    total = {name: sum(p[name] for p in played) for name in played[0]}
    assert total["frames"] >= 60_000
    assert total["restores"] >= 300
    # The play covered cleared levels, pipes, a vine, a loop, water, castles and lost lives.
    assert total["poles"] >= 5
    assert total["axes"] >= 3
    assert total["pipes"] >= 10
    assert total["vines"] >= 1
    assert total["loops"] >= 1
    assert total["deaths"] >= 8
    assert total["water_frames"] >= 2_000
    assert total["castle_frames"] >= 2_000


def test_a_difference_in_memory_is_noticed() -> None:
    """The comparison can fail: one changed byte on one side ends it."""
    console = LockstepConsole()
    console.step(0, 40)
    console.native.poke(0x10, console.ram[0x10] ^ 1)
    with pytest.raises(Divergence, match="memory differs"):
        console.step(0, 1)


def test_a_difference_in_the_picture_is_noticed() -> None:
    """One changed row of a ground tile: the memory stays the same, the picture does not."""
    console = LockstepConsole(restore_every_frames=10**9)
    rom = bytearray(rom_bytes())
    rom[GROUND_TILE_ROW] ^= 0x10
    console.native = NativeConsole(bytes(rom))
    with pytest.raises(Divergence, match="picture differs"):
        stage.start_level(console, "1-1")


def test_the_whole_game_is_the_stock_environments() -> None:
    comparison = compare(None, 1, seed=5)
    assert comparison.ends == {"DEATH": 1}
    assert comparison.largest_grey_difference <= 1


def test_a_time_out_is_the_stock_environments() -> None:
    """Two units of the clock are left on both sides; random play seldom lasts for 400."""
    env = stock_env("1-2")
    env.reset()
    console = NativeConsole()
    stage.start_level(console, "1-2")
    for address, digit in enumerate((0, 0, 2), Ram.TIME):
        console.poke(address, digit)
        env.ram[address] = digit
    batch, out = (
        NativeBatch(1, GAME, BUTTONS, threads=1),
        np.zeros((1, *OBSERVATION_SHAPE), np.uint8),
    )
    batch.begin(0, EpisodeSpec("1-2", 0, console.save_state()), out)
    done = False
    while not done:
        _, reward, done, info = env.step(0)
        result = batch.step(np.zeros(1, np.int64), out)
        assert batch.ram(0) == env.ram.tobytes()
        assert (int(result.end[0]) != EndReason.RUNNING) == done
        assert int(result.after[0]["time_left"]) == info["time"]
        # The stock reward remembers the clock before the poke, so its first frame is not compared.
        assert result.frames[0] == 1 or int(result.game_reward[0]) == reward
    assert result.end[0] == EndReason.TIME_OUT
    assert result.frames[0] > 20
    env.close()
    batch.close()


@pytest.mark.timeout(1800)
def test_episodes_are_those_of_the_stock_environment() -> None:
    """Rewards, ends, info, memory; three ends in each of eight levels, one of them a clear."""

    def one(item: tuple[int, str]) -> Comparison:
        return compare(item[1], 3, seed=item[0], film=True)

    levels = ("1-1", "1-4", "2-2", "3-3", "4-3", "5-4", "6-1", "7-1")
    with ThreadPoolExecutor(2) as pool:
        comparisons = list(pool.map(one, enumerate(levels)))
    ends = [c.ends for c in comparisons]
    assert sum(c.episodes for c in comparisons) == 3 * len(levels)
    assert sum(e.get("FLAG", 0) for e in ends) == len(levels)
    assert sum(e.get("DEATH", 0) for e in ends) >= len(levels)
    assert max(c.largest_grey_difference for c in comparisons) <= 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_320_episode_ends_are_those_of_the_stock_environment() -> None:
    """All 32 levels, ten ends in each."""
    with ThreadPoolExecutor(2) as pool:
        comparisons = list(
            pool.map(
                lambda i: compare(i[1], 10, seed=100 + i[0], film=True), enumerate(LEVEL_NAMES)
            )
        )
    ends = {name: sum(c.ends.get(name, 0) for c in comparisons) for name in ("FLAG", "DEATH")}
    print(f"{sum(c.frames for c in comparisons):,} frames, ends {ends}")
    assert sum(c.episodes for c in comparisons) == 320
    assert all(c.ends.get("FLAG", 0) >= 1 for c in comparisons)
    assert ends["DEATH"] >= 200
    assert max(c.largest_grey_difference for c in comparisons) <= 1
