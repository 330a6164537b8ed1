"""Play the game on any console: start a level, play a controllable frame, skip to the next one.

The order of events is that of gym-super-mario-bros 7.4.0 (`SuperMarioBrosEnv`, `NESEnv.step`). The
native batch does the same in C++ and passes the same contract tests.
"""

from __future__ import annotations

from mario.errors import ConsoleError
from mario.game.console.contract import Console
from mario.game.smb import memory as ram_state
from mario.game.smb.actions import Button
from mario.game.smb.levels import level as find_level
from mario.game.smb.memory import DEAD, Ram

_START = int(Button.START)
_MAX_SKIPPED_FRAMES = 20_000


def start_level(console: Console, level: str | None) -> None:
    """Power the console on and skip to the first controllable frame.

    Args:
        console: any console; its state is lost.
        level: ``"1-1"`` … ``"8-4"``, or None for the whole game with three lives.

    Raises:
        ConfigError: there is no such level.
        ConsoleError: the game does not start (another cartridge).
    """
    target = None if level is None else find_level(level)
    console.reset()
    console.step(_START)
    console.step(0)
    for _ in range(_MAX_SKIPPED_FRAMES):
        if ram_state.read_time(console.ram) != 0:
            break
        console.step(_START)
        if target is not None:
            console.poke(Ram.WORLD, target.world - 1)
            console.poke(Ram.STAGE, target.stage - 1)
            console.poke(Ram.AREA, target.area - 1)
        console.step(0)
        console.poke(Ram.BLACK_SCREEN_TIMER, 0)
    else:
        raise _does_not_play("the title screen")
    # The clock first ticks when Mario can be moved.
    time = ram_state.read_time(console.ram)
    for _ in range(_MAX_SKIPPED_FRAMES):
        if ram_state.read_time(console.ram) < time:
            return
        time = ram_state.read_time(console.ram)
        console.step(_START)
        console.step(0)
    raise _does_not_play("the start of the level")


def play_frame(console: Console, buttons: int) -> None:
    """Play one controllable frame: hold `buttons` (0…255) for it."""
    console.step(buttons)


def is_over(console: Console, *, single_level: bool) -> bool:
    """Tell whether the episode has ended.

    In one level: flag or death. In the whole game: no lives left, or the last axe, after which
    gym-super-mario-bros would wait forever.
    """
    ram = console.ram
    if not single_level:
        return ram_state.is_game_over(ram) or ram_state.is_won(ram)
    return ram_state.is_dying(ram) or ram_state.is_dead(ram) or ram_state.is_flag(ram)


def skip_unplayable(console: Console, *, single_level: bool) -> None:
    """Skip to the next controllable frame, after a frame that did not end the episode.

    Raises:
        ConsoleError: the game does not reach a controllable frame.
    """
    ram = console.ram
    if ram_state.is_dying(ram):
        console.poke(Ram.PLAYER_STATE, DEAD)  # skips the dying animation
        console.step(0)
    if not single_level and ram_state.is_world_over(ram):
        time = ram_state.read_time(ram)
        for _ in range(_MAX_SKIPPED_FRAMES):
            if ram_state.read_time(ram) != time:
                break
            console.step(0)
        else:
            raise _does_not_play("the end of a world")
    if 1 < int(ram[Ram.AREA_CHANGE_TIMER]) < 255:
        console.poke(Ram.AREA_CHANGE_TIMER, 1)
    for _ in range(_MAX_SKIPPED_FRAMES):
        if not (ram_state.is_busy(ram) or ram_state.is_world_over(ram)):
            return
        console.poke(Ram.BLACK_SCREEN_TIMER, 0)
        console.step(0)
    raise _does_not_play("a change of area")


def _does_not_play(where: str) -> ConsoleError:
    return ConsoleError(
        f"the game did not get past {where} in {_MAX_SKIPPED_FRAMES} frames: expected Super Mario "
        "Bros as gym-super-mario-bros 7.4.0 ships it; check the cartridge image"
    )
