"""The native batch: games in C++, stepped by a pool of threads."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mario.config.game import GameConfig
from mario.config.levels import LEVEL_NAMES
from mario.errors import ConsoleError
from mario.game.batch.contract import BatchStep, EpisodeSpec, check_buffer
from mario.game.console.cartridge import rom_bytes
from mario.game.console.contract import UInt8Array
from mario.game.console.native import native_module
from mario.game.smb.actions import button_bytes
from mario.game.smb.levels import level as find_level
from mario.game.smb.memory import STATE_DTYPE, STATE_FIELDS, StateArray
from mario.game.smb.observations.pixels import OBSERVATION

_WHOLE_GAME = -1
_LEVEL_INDEX = {name: index for index, name in enumerate(LEVEL_NAMES)}


class NativeBatch:
    """N native games; a step releases the interpreter lock and uses several threads.

    Only one Python thread at a time may call a batch.
    """

    def __init__(
        self,
        slots: int,
        game: GameConfig,
        buttons: Sequence[int] | None = None,
        threads: int = 0,
    ) -> None:
        """Power on `slots` consoles; see :func:`mario.game.batch.factory.open_batch`.

        Raises:
            ConfigError: a button byte is out of range.
            ConsoleError: the native extension is not built.
            RomError: the cartridge image is missing.
        """
        self.slots = slots
        self.game = game
        self.buttons = button_bytes(game.actions, buttons)
        self.observation = OBSERVATION
        self._core = native_module().Batch(
            rom_bytes(),
            slots,
            bytes(self.buttons),
            game.frame_skip,
            game.max_pool,
            game.no_op_max_frames,
            game.sticky_probability,
            game.max_steps,
            game.stuck_limit_steps,
            threads or _cores(),
        )
        result = self._result = BatchStep.empty(slots, OBSERVATION)
        self._core.attach(
            _as_int32(result.before),
            _as_int32(result.after),
            result.furthest_x_px,
            result.end,
            result.steps,
            result.frames,
            result.game_reward,
            result.terminal_observations,
            result.active,
        )

    def begin(self, slot: int, spec: EpisodeSpec, out: UInt8Array) -> None:
        """Start an episode in a slot."""
        check_buffer(out, self.slots, OBSERVATION)
        self._core.begin(slot, _level_index(spec), _seed(spec), spec.state, out)

    def queue(self, slot: int, spec: EpisodeSpec | None) -> None:
        """Set the next episode of a slot.

        Raises:
            ConfigError: no such level. SaveStateError: the start state is not one.
        """
        if spec is None:
            self._core.clear_queue(slot)
        else:
            self._core.queue(slot, _level_index(spec), _seed(spec), spec.state)

    def step(self, actions: npt.NDArray[np.int64], out: UInt8Array) -> BatchStep:
        """Hold one action in each slot for one step."""
        check_buffer(out, self.slots, OBSERVATION)
        if actions.shape != (self.slots,):
            raise ConsoleError(
                f"actions of shape {actions.shape}: expected ({self.slots},), one for each slot"
            )
        self._core.step(np.ascontiguousarray(actions, dtype=np.int64), out)
        return self._result

    def states(self) -> StateArray:
        """Copy the present 13 values of every slot: STATE_DTYPE (N,)."""
        states = np.zeros(self.slots, STATE_DTYPE)
        self._core.states(_as_int32(states))
        return states

    def ram(self, slot: int) -> bytes:
        """Copy the 2,048 bytes of work RAM of a slot's console."""
        ram: bytes = self._core.ram(slot)
        return ram

    def screen_rgb(self, slot: int) -> UInt8Array:
        """Copy a slot's picture: uint8 (240, 256, 3)."""
        screen: UInt8Array = self._core.screen_rgb(slot)
        return screen

    def console_state(self, slot: int) -> bytes:
        """Save the state of a slot's console; `NativeConsole` loads it, too."""
        state: bytes = self._core.console_state(slot)
        return state

    def snapshot(self, slot: int) -> bytes:
        """Save a whole slot."""
        snapshot: bytes = self._core.snapshot(slot)
        return snapshot

    def restore(self, slot: int, snapshot: bytes, out: UInt8Array) -> None:
        """Restore a slot from a snapshot."""
        check_buffer(out, self.slots, OBSERVATION)
        self._core.restore(slot, snapshot, out)

    def close(self) -> None:
        """Stop the threads and free the consoles; the batch cannot be used afterwards."""
        self._core = _Closed()


class _Closed:
    """Stands in for the native batch once it is closed."""

    def __getattr__(self, name: str) -> object:
        raise ConsoleError(f"{name}() on a closed batch: expected an open one; open another")


def _cores() -> int:
    """Count the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _as_int32(states: StateArray) -> npt.NDArray[np.int32]:
    """View rows of STATE_DTYPE, 13 int32 each, as int32 (N, 13)."""
    return states.view(np.int32).reshape(len(states), len(STATE_FIELDS))


def _level_index(spec: EpisodeSpec) -> int:
    return _WHOLE_GAME if spec.level is None else _LEVEL_INDEX[find_level(spec.level).name]


def _seed(spec: EpisodeSpec) -> int:
    return spec.seed & 0xFFFF_FFFF_FFFF_FFFF
