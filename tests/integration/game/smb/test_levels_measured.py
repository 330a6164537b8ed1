"""The table of levels agrees with the cartridge and with playthroughs."""

from __future__ import annotations

import numpy as np
import pytest

from mario.config.levels import LEVEL_NAMES
from mario.game.batch.contract import EpisodeSpec
from mario.game.batch.native import NativeBatch
from mario.game.console.cartridge import rom_bytes
from mario.game.console.native import NativeConsole
from mario.game.smb import stage
from mario.game.smb.end_reason import EndReason
from mario.game.smb.levels import LEVELS, START_X_PX
from mario.game.smb.memory import Ram, read_state
from mario.game.smb.observations.pixels import OBSERVATION_SHAPE
from tests.support.lockstep import playthroughs
from tests.support.stock_comparison import BUTTONS, GAME

KINDS = {0: "water", 1: "overworld", 2: "underground", 3: "castle"}
# Object kinds in row 13 of an area's object list (SMB disassembly, "AreaParserTasks").
POLE, AXE, LOOP = 0x41, 0x42, 0x4B
# These end in another area, after a pipe.
END_ELSEWHERE = {"1-2", "2-2", "4-2", "7-2"}


def objects(prg: bytes, address: int) -> list[tuple[int, int]]:
    """List kind and x in px of the row-13 objects at `address`."""
    found, page, at = [], 0, address - 0x8000
    while prg[at] != 0xFD:
        first, second = prg[at : at + 2]
        at += 2
        page += second >> 7
        if first & 0x0F != 0x0D:
            continue
        if second & 0x40:
            found.append((second & 0x7F, page * 256 + (first >> 4) * 16))
        else:
            page = second & 0x1F
    return found


@pytest.mark.parametrize("name", LEVEL_NAMES)
def test_a_level_begins_and_ends_where_the_cartridge_says(name: str) -> None:
    console = NativeConsole(draw=False)
    stage.start_level(console, name)
    level, state = LEVELS[name], read_state(console.ram)
    assert (state["world"], state["stage"], state["area"]) == (level.world, level.stage, level.area)
    assert state["x_px"] == START_X_PX
    assert state["time_left"] == level.clock
    assert KINDS[int(console.ram[Ram.AREA_TYPE])] == level.kind
    low, high = (int(byte) for byte in console.ram[Ram.AREA_DATA : Ram.AREA_DATA + 2])
    listed = objects(rom_bytes()[16:], low | high << 8)
    assert any(kind == LOOP for kind, _ in listed) == level.loops
    goals = [(kind, x) for kind, x in listed if kind in (POLE, AXE)]
    if name in END_ELSEWHERE:
        assert goals == []
    else:
        assert goals == [(POLE if level.goal == "pole" else AXE, level.goal_x_px)]


@pytest.mark.parametrize("name", LEVEL_NAMES)
def test_a_play_ends_at_the_length(name: str) -> None:
    """Mario holds the pole at one x exactly; he can reach the axe from a little further."""
    film = playthroughs()[name]
    level = LEVELS[name]
    batch, out = (
        NativeBatch(1, GAME, BUTTONS, threads=1),
        np.zeros((1, *OBSERVATION_SHAPE), np.uint8),
    )
    batch.begin(0, EpisodeSpec(name, 0), out)
    for buttons in film:
        result = batch.step(np.array([buttons], np.int64), out)
        if result.end[0]:
            break
    batch.close()
    assert result.end[0] == EndReason.FLAG
    end_px = int(result.after[0]["x_px"])
    if level.goal == "pole":
        assert end_px == level.length_px
    else:
        assert level.length_px <= end_px <= level.length_px + 40
    assert end_px <= int(result.furthest_x_px[0]) < level.length_px + 300
