"""The batch in Python over any console: the reference for the native batch."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mario.config.game import GameConfig
from mario.errors import ConfigError, ConsoleError, SaveStateError
from mario.game.batch.contract import BatchStep, EpisodeSpec, check_buffer
from mario.game.console.contract import Console, UInt8Array
from mario.game.console.factory import open_console
from mario.game.rng import SplitMix64
from mario.game.smb import stage
from mario.game.smb.actions import button_bytes
from mario.game.smb.end_reason import EndReason
from mario.game.smb.levels import level as find_level
from mario.game.smb.memory import MAX_X_PX, STATE_DTYPE, StateArray, is_won, read_state
from mario.game.smb.observations.pixels import (
    OBSERVATION,
    OBSERVATION_SHAPE,
    FrameStack,
    area_resize,
)

_MAGIC = b"MSLT"
# gym-super-mario-bros: a larger change of x within a frame is a change of area, not a movement.
_MAX_X_REWARD_PX = 5
_DEATH_PENALTY = 25
_REWARD_LIMIT = 15


class _Slot:
    """One game and the counters of its episode."""

    def __init__(self, console: Console, game: GameConfig) -> None:
        self.console = console
        self.game = game
        self.stack = FrameStack()
        self.spec: EpisodeSpec | None = None
        self.queued: EpisodeSpec | None = None
        self.generator = SplitMix64(0)
        self.seen_buttons = 0
        self.steps = 0
        self.frames = 0
        self.furthest_x_px = 0
        self.progress_step = 0
        self.x_last = 0
        self.time_last = 0

    @property
    def single_level(self) -> bool:
        return self.spec is not None and self.spec.level is not None

    def begin(self, spec: EpisodeSpec, level_states: dict[str | None, bytes]) -> None:
        if spec.level is not None:
            find_level(spec.level)
        if spec.state is not None:
            self.console.load_state(spec.state)
        elif spec.level in level_states:
            self.console.load_state(level_states[spec.level])
        else:
            stage.start_level(self.console, spec.level)
            level_states[spec.level] = self.console.save_state()
        self.spec = spec
        self.generator = SplitMix64(spec.seed)
        self.seen_buttons = self.steps = self.frames = self.progress_step = 0
        for _ in range(self.generator.below(self.game.no_op_max_frames + 1)):
            if stage.is_over(self.console, single_level=self.single_level):
                break
            stage.play_frame(self.console, 0)
            if not stage.is_over(self.console, single_level=self.single_level):
                stage.skip_unplayable(self.console, single_level=self.single_level)
        start = read_state(self.console.ram)
        self.x_last = int(start["x_px"])
        self.furthest_x_px = self.x_last if self.x_last < MAX_X_PX else 0
        self.time_last = int(start["time_left"])
        self.stack.fill(area_resize(self.console.screen_grey()))

    def step(self, buttons: int, result: BatchStep, row: int) -> EndReason:
        game = self.game
        result.before[row] = read_state(self.console.ram)
        pictures: list[UInt8Array] = []
        reward, over = 0, False
        for index in range(game.frame_skip):
            sticky = (
                game.sticky_probability > 0 and self.generator.uniform() < game.sticky_probability
            )
            if not sticky:
                self.seen_buttons = buttons
            stage.play_frame(self.console, self.seen_buttons)
            self.frames += 1
            after = read_state(self.console.ram)
            reward += self._game_reward(after)
            self.furthest_x_px = self._furthest(int(after["x_px"]))
            over = stage.is_over(self.console, single_level=self.single_level)
            if not over:
                stage.skip_unplayable(self.console, single_level=self.single_level)
            last = over or index == game.frame_skip - 1
            if last or (game.max_pool and index == game.frame_skip - 2):
                pictures.append(self.console.screen_grey())
            if over:
                break
        self.steps += 1
        picture = np.maximum.reduce(pictures) if game.max_pool else pictures[-1]
        self.stack.push(area_resize(picture))
        result.after[row] = after
        result.furthest_x_px[row] = self.furthest_x_px
        result.steps[row] = self.steps
        result.frames[row] = self.frames
        result.game_reward[row] = reward
        return self._end(after, over)

    def _furthest(self, x_px: int) -> int:
        if self.furthest_x_px < x_px < MAX_X_PX:
            self.progress_step = self.steps + 1
            return x_px
        return self.furthest_x_px

    def _game_reward(self, after: StateArray) -> int:
        """`SuperMarioBrosEnv._get_reward` for one frame, clipped as `NESEnv.step` does."""
        moved = int(after["x_px"]) - self.x_last
        ticked = int(after["time_left"]) - self.time_last
        self.x_last, self.time_last = int(after["x_px"]), int(after["time_left"])
        reward = moved if abs(moved) <= _MAX_X_REWARD_PX else 0
        reward += min(ticked, 0)
        reward -= _DEATH_PENALTY * int(after["dying"])
        return max(-_REWARD_LIMIT, min(_REWARD_LIMIT, reward))

    def _end(self, after: StateArray, over: bool) -> EndReason:
        if over:
            if after["flag"] if self.single_level else is_won(self.console.ram):
                return EndReason.FLAG
            return EndReason.DEATH if after["time_left"] > 0 else EndReason.TIME_OUT
        limit = self.game.stuck_limit_steps
        stuck = limit > 0 and self.steps - self.progress_step >= limit
        if stuck or self.steps >= self.game.max_steps:
            return EndReason.TRUNCATED
        return EndReason.RUNNING


class ConsoleBatch:
    """A batch of consoles that are stepped one after the other."""

    def __init__(self, slots: int, game: GameConfig, buttons: Sequence[int] | None = None) -> None:
        """Power on `slots` consoles; see :func:`mario.game.batch.factory.open_batch`."""
        self.slots = slots
        self.game = game
        self.buttons = button_bytes(game.actions, buttons)
        self.observation = OBSERVATION
        self._games = [_Slot(open_console(game.console), game) for _ in range(slots)]
        self._level_states: list[dict[str | None, bytes]] = [{} for _ in range(slots)]
        self._result = BatchStep.empty(slots, OBSERVATION)

    def begin(self, slot: int, spec: EpisodeSpec, out: UInt8Array) -> None:
        """Start an episode in a slot."""
        check_buffer(out, self.slots, self.observation)
        self._games[slot].begin(spec, self._level_states[slot])
        self._games[slot].queued = None
        out[slot] = self._games[slot].stack.observation()

    def queue(self, slot: int, spec: EpisodeSpec | None) -> None:
        """Set the next episode of a slot."""
        if spec is not None and spec.level is not None:
            find_level(spec.level)
        self._games[slot].queued = spec

    def step(self, actions: npt.NDArray[np.int64], out: UInt8Array) -> BatchStep:
        """Hold one action in each slot for one step."""
        check_buffer(out, self.slots, self.observation)
        result = self._result
        active = np.array([slot.spec is not None for slot in self._games])
        check_actions(actions, active, len(self.buttons))
        result.active[:] = active
        result.end[:] = EndReason.RUNNING
        for row, slot in enumerate(self._games):
            if not active[row]:
                continue
            end = slot.step(self.buttons[int(actions[row])], result, row)
            result.end[row] = end
            if end is not EndReason.RUNNING:
                result.terminal_observations[row] = slot.stack.observation()
                spec, slot.queued, slot.spec = slot.queued, None, None
                if spec is not None:
                    slot.begin(spec, self._level_states[row])
            out[row] = slot.stack.observation()
        return result

    def states(self) -> StateArray:
        """Copy the present 13 values of every slot: STATE_DTYPE (N,)."""
        states = np.zeros(self.slots, STATE_DTYPE)
        for row, slot in enumerate(self._games):
            states[row] = read_state(slot.console.ram)
        return states

    def ram(self, slot: int) -> bytes:
        """Copy the work RAM of a slot's console."""
        return self._games[slot].console.ram.tobytes()

    def screen_rgb(self, slot: int) -> UInt8Array:
        """Copy a slot's picture: uint8 (240, 256, 3)."""
        return self._games[slot].console.screen_rgb()

    def console_state(self, slot: int) -> bytes:
        """Save the state of a slot's console."""
        return self._games[slot].console.save_state()

    def snapshot(self, slot: int) -> bytes:
        """Save a whole slot."""
        game = self._games[slot]
        header = {
            "spec": game.spec and game.spec.to_json(),
            "queued": game.queued and game.queued.to_json(),
            "generator": game.generator.state,
            **{name: getattr(game, name) for name in _COUNTERS},
        }
        text = json.dumps(header).encode()
        body = (
            struct.pack("<I", len(text))
            + text
            + game.stack.observation().tobytes()
            + game.console.save_state()
        )
        return _MAGIC + struct.pack("<I", zlib.crc32(body)) + body

    def restore(self, slot: int, snapshot: bytes, out: UInt8Array) -> None:
        """Restore a slot from a snapshot."""
        check_buffer(out, self.slots, self.observation)
        body = snapshot[8:]
        if (
            snapshot[:4] != _MAGIC
            or len(body) < 4
            or struct.unpack("<I", snapshot[4:8])[0] != zlib.crc32(body)
        ):
            raise SaveStateError(
                f"{len(snapshot)} bytes that are no snapshot of this console: expected "
                "what snapshot() returned; resume with the console the run was started with"
            )
        (length,) = struct.unpack_from("<I", body)
        stack_end = 4 + length + int(np.prod(OBSERVATION_SHAPE))
        try:
            header = json.loads(body[4 : 4 + length])
            spec, queued = (
                None if header[name] is None else EpisodeSpec.from_json(header[name])
                for name in ("spec", "queued")
            )
            generator = _whole(header["generator"], 2**64)
            counters = {name: _whole(header[name], 2**31) for name in _COUNTERS}
            _whole(header["seen_buttons"], 0x100)
            frames = np.frombuffer(body[4 + length : stack_end], np.uint8).reshape(
                OBSERVATION_SHAPE
            )
        except (ValueError, TypeError, KeyError, ConfigError) as error:
            raise SaveStateError(
                f"{len(snapshot)} bytes of a snapshot with an impossible value ({error}): expected "
                "what snapshot() returned; resume from an earlier checkpoint"
            ) from error
        game = self._games[slot]
        game.console.load_state(body[stack_end:])
        game.spec, game.queued, game.generator.state = spec, queued, generator
        for name, value in counters.items():
            setattr(game, name, value)
        game.stack.restore(frames)
        out[slot] = game.stack.observation()

    def close(self) -> None:
        """Free the consoles."""
        self._games = []


_COUNTERS = (
    "seen_buttons", "steps", "frames", "furthest_x_px", "progress_step", "x_last", "time_last",
)  # fmt: skip


def _whole(value: object, bound: int) -> int:
    if not isinstance(value, int) or not 0 <= value < bound:
        raise ValueError(f"got {value!r}, expected a number below {bound}")
    return value


def check_actions(
    actions: npt.NDArray[np.int64], active: npt.NDArray[np.bool_], choices: int
) -> None:
    """Refuse actions other than one index below `choices` for each active slot.

    Raises:
        ConsoleError: another shape or an index outside 0 … choices − 1.
    """
    if actions.shape != active.shape:
        raise ConsoleError(
            f"actions of shape {actions.shape}: expected ({active.size},), one for each slot"
        )
    bad = active & ((actions < 0) | (actions >= choices))
    if bad.any():
        slot = int(np.flatnonzero(bad)[0])
        raise ConsoleError(
            f"action {int(actions[slot])} for slot {slot}: expected 0 to {choices - 1}, "
            "an index into the action set"
        )
