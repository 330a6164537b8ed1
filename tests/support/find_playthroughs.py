"""Find inputs that clear levels, by exploring with save-states on the native console.

    python tests/support/find_playthroughs.py [--seconds 120] [LEVEL ...]

Writes tests/data/playthroughs.json: for each level the start of a real play to the flag or the axe,
which the exactness tests replay on both consoles. The search is Go-Explore's first phase (Ecoffet
et al. 2021): keep one save-state for each cell of the world that was reached, go back to a
promising one, act at random from there.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass

import numpy as np

from mario.config.game import GameConfig
from mario.config.levels import LEVEL_NAMES
from mario.game.batch.contract import EpisodeSpec
from mario.game.batch.native import NativeBatch
from mario.game.console.cartridge import rom_bytes
from mario.game.console.native import NativeConsole
from mario.game.smb.end_reason import EndReason
from mario.game.smb.memory import Ram
from mario.game.smb.observations.pixels import OBSERVATION_SHAPE
from mario.game.smb.stage import start_level
from tests.support.lockstep import DOWN, LEFT, RIGHT, UP, A, B
from tests.support.paths import ROOT

DATA = ROOT / "tests" / "data" / "playthroughs.json"
FRAME_SKIP = 4
SLOTS = 32
ROLLOUT_STEPS = 40
# Buttons and how often a random player presses them.
CHOICES = {
    RIGHT | B: 6, RIGHT | A | B: 8, RIGHT: 2, RIGHT | A: 3, 0: 1, A: 1,
    LEFT | B: 1, LEFT | A | B: 1, DOWN: 1, UP: 1,
}  # fmt: skip
# Walking more and jumping less is needed to enter pipes under water.
CALM = {RIGHT: 10, RIGHT | B: 4, RIGHT | A: 3, 0: 3, LEFT: 2, DOWN: 3, RIGHT | A | B: 3, A: 1}
BUTTONS = tuple(CHOICES | CALM)
GAME = GameConfig(
    frame_skip=FRAME_SKIP, no_op_max_frames=0, sticky_probability=0.0, max_steps=10**6
)

VINE, OBJECTS = 0x2F, slice(Ram.ENEMY_TYPES, Ram.ENEMY_TYPES + 6)
VINE_BRICK = 5  # a kind of object in the cartridge
CLIMBING = 3  # `Ram.FLOAT_STATE`

Cell = tuple[int, ...]


@dataclass
class Node:
    """The best state of a cell, and the actions that lead to it."""

    state: bytes
    steps: int
    actions: list[int]  # from the level's start
    reach: int  # how far it is, in columns of 24 px
    visits: int = 0
    born: int = 0


def cell_of(ram: bytes) -> Cell:
    """Locate Mario: area, page, 24 px column, 32 px row, and whether he is on the ground."""
    x_px = ram[Ram.PLAYER_PAGE] * 256 + ram[Ram.PLAYER_X]
    return (
        ram[Ram.AREA_POINTER],
        ram[Ram.ENTRANCE_PAGE] & 0x1F,
        x_px // 24,
        ram[Ram.PLAYER_Y_PAGE] * 8 + ram[Ram.PLAYER_Y] // 32,
        int(ram[Ram.FLOAT_STATE] != 0),
    )


def reach_in_level(cell: Cell, rooms: dict[tuple[int, int], int]) -> int:
    """Estimate a cell's distance from the start: rooms count in the order of discovery."""
    return cell[2] + 60 * rooms.setdefault((cell[0], cell[1]), len(rooms))


def vine_x_px(level: str) -> int:
    """Find the x of the brick with the vine in the level's object list in the cartridge.

    Raises:
        SystemExit: the level has none.
    """
    console = NativeConsole(draw=False)
    start_level(console, level)
    prg, page = rom_bytes()[16:], 0
    low, high = (int(byte) for byte in console.ram[Ram.AREA_DATA : Ram.AREA_DATA + 2])
    at = (low | high << 8) - 0x8000
    while prg[at] != 0xFD:
        first, second = prg[at : at + 2]
        at += 2
        page += second >> 7
        if first & 0x0F == 13 and not second & 0x40:
            page = second & 0x1F
        elif first & 0x0F < 12 and second & 0x7F == VINE_BRICK:
            return page * 256 + (first >> 4) * 16
    raise SystemExit(f"{level}: no brick with a vine in it; expected 2-1, 3-1, 4-2, 5-2 or 6-2")


def reach_on_vine(ram: bytes, vine_px: int) -> int:
    """Estimate the progress to a vine's top: near its brick, vine in sight, climbing, height."""
    if VINE not in ram[OBJECTS]:
        return -abs(ram[Ram.PLAYER_PAGE] * 256 + ram[Ram.PLAYER_X] - vine_px) // 24
    climbing = ram[Ram.FLOAT_STATE] == CLIMBING
    return 60 + (60 + 256 - ram[Ram.PLAYER_Y] if climbing else 0)


def explore(
    level: str,
    seconds: float,
    seed: int,
    *,
    calm: bool = False,
    vine: bool = False,
) -> tuple[list[int] | None, int, int]:
    """Search for a play that clears `level`, or with `vine` one that climbs into the clouds.

    Returns:
        The actions (or None), steps searched, cells found.
    """
    rng = random.Random(seed)
    habits = CALM if calm else CHOICES
    weights = [habits.get(buttons, 0) for buttons in BUTTONS]
    batch = NativeBatch(SLOTS, GAME, BUTTONS, threads=1)
    out = np.zeros((SLOTS, *OBSERVATION_SHAPE), np.uint8)
    batch.begin(0, EpisodeSpec(level, 0), out)
    root_state = batch.console_state(0)
    nodes: dict[Cell, Node] = {cell_of(batch.ram(0)): Node(root_state, 0, [], 0)}
    rooms: dict[tuple[int, int], int] = {}
    vine_px = vine_x_px(level) if vine else 0
    origin: list[list[int]] = [[] for _ in range(SLOTS)]
    held = [0] * SLOTS
    hold = [0] * SLOTS
    left = [0] * SLOTS
    searched = 0
    deadline = time.monotonic() + seconds

    def choose() -> Node:
        recent = max(n.born for n in nodes.values())
        best, best_score = None, -math.inf
        for node in rng.sample(list(nodes.values()), min(len(nodes), 24)):
            score = (
                2.0 * node.reach / 24
                + 1.5 * (node.born / (recent + 1))
                - 0.7 * math.log1p(node.visits)
                + rng.random()
            )
            if score > best_score:
                best, best_score = node, score
        assert best is not None
        best.visits += 1
        return best

    def restart(slot: int) -> None:
        node = choose()
        origin[slot] = list(node.actions)
        left[slot] = ROLLOUT_STEPS
        hold[slot] = 0
        batch.begin(slot, EpisodeSpec(level, 0, node.state), out)

    for slot in range(SLOTS):
        restart(slot)
    while time.monotonic() < deadline:
        actions = np.zeros(SLOTS, np.int64)
        for slot in range(SLOTS):
            if hold[slot] == 0:
                held[slot] = rng.choices(range(len(BUTTONS)), weights)[0]
                hold[slot] = rng.choice((1, 2, 3, 5, 8, 12))
            hold[slot] -= 1
            actions[slot] = held[slot]
            origin[slot].append(held[slot])
        result = batch.step(actions, out)
        searched += SLOTS
        for slot in range(SLOTS):
            if result.end[slot] == EndReason.FLAG and not vine:
                batch.close()
                return origin[slot], searched, len(nodes)
            left[slot] -= 1
            if result.end[slot]:
                restart(slot)
                continue
            ram = batch.ram(slot)
            cell = cell_of(ram)
            if vine and ram[Ram.CLOUD_AREA]:
                batch.close()
                return origin[slot], searched, len(nodes)
            found = nodes.get(cell)
            if found is None or len(origin[slot]) < found.steps - 8:
                nodes[cell] = Node(
                    batch.console_state(slot), len(origin[slot]), list(origin[slot]),
                    reach_on_vine(ram, vine_px) if vine else reach_in_level(cell, rooms),
                    born=len(nodes) if found is None else found.born,
                )  # fmt: skip
                if found is None:
                    left[slot] = max(left[slot], ROLLOUT_STEPS // 2)
            if left[slot] <= 0:
                restart(slot)
    batch.close()
    for area in sorted({cell[:2] for cell in nodes}):
        furthest = max(cell[2] for cell in nodes if cell[:2] == area)
        print(f"  area {area[0]:#04x}.{area[1]}: furthest x {furthest * 24} px")
    return None, searched, len(nodes)


def run_lengths(actions: list[int]) -> list[list[int]]:
    """Pack actions as [button byte, steps] pairs."""
    packed: list[list[int]] = []
    for action in actions:
        if packed and packed[-1][0] == BUTTONS[action]:
            packed[-1][1] += 1
        else:
            packed.append([BUTTONS[action], 1])
    return packed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("levels", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calm", action="store_true", help="walk more, jump less")
    parser.add_argument(
        "--vine", action="store_true", help="climb a vine instead (one play a level)"
    )
    arguments = parser.parse_args()
    known = (
        json.loads(DATA.read_text()) if DATA.exists() else {"frame_skip": FRAME_SKIP, "levels": {}}
    )
    for level in arguments.levels or LEVEL_NAMES:
        if level in known["levels"] and not arguments.levels:
            continue
        began = time.monotonic()
        actions, searched, cells = explore(
            level, arguments.seconds, arguments.seed, calm=arguments.calm,
            vine=arguments.vine,
        )  # fmt: skip
        done = "climbed" if arguments.vine else "cleared"
        verdict = f"not {done}" if actions is None else f"{done} in {len(actions)} steps"
        print(
            f"{level}: {verdict}, {searched} steps searched, {cells} cells, "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
        if actions is not None:
            name = f"{level} vine" if arguments.vine else level
            known["levels"][name] = run_lengths(actions)
            DATA.parent.mkdir(parents=True, exist_ok=True)
            text = ",\n".join(
                f"  {json.dumps(name)}: {json.dumps(play, separators=(',', ':'))}"
                for name, play in sorted(known["levels"].items())
            )
            DATA.write_text(f'{{"frame_skip": {known["frame_skip"]}, "levels": {{\n{text}\n}}}}\n')


if __name__ == "__main__":
    main()
