"""The contract of a batch: N games stepped in one call, with noise, frame skip and auto-reset.

Two implementations pass the same contract tests: `oracle.ConsoleBatch` (Python, over any console)
and `native.NativeBatch` (C++, threads). An episode depends on its spec and the actions only: not on
the number of slots, the slot, the threads or the episodes before.

An episode, in order:

1. the level's first controllable frame, or the spec's save-state;
2. k frames of no input, where k is the first draw of the episode's generator; they stop if the
   game ends;
3. the first observation; pixels hold its frame four times;
4. steps of `frame_skip` controllable frames. Each frame draws whether it is sticky, is played, and
   either ends the episode, and with it the step, or is followed by a skip to the next controllable
   frame. The observation shows the last frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mario.config.game import GameConfig
from mario.errors import ConsoleError
from mario.game.console.contract import UInt8Array
from mario.game.smb.levels import level as find_level
from mario.game.smb.memory import STATE_DTYPE, StateArray
from mario.game.smb.observations.contract import ObservationKind, Observations


@dataclass(frozen=True)
class EpisodeSpec:
    """Everything but the actions that an episode depends on.

    Attributes:
        level: ``"1-1"`` … ``"8-4"``, or None for the whole game with three lives.
        seed: seed of the episode's generator (start no-ops, sticky actions), 0 … 2**64 − 1.
        state: a console save-state to start from instead of the level's first controllable
            frame; the frames of no input follow it, too.
    """

    level: str | None
    seed: int
    state: bytes | None = None

    def to_json(self) -> dict[str, object]:
        """Give the episode as JSON values, for a snapshot."""
        state = None if self.state is None else self.state.hex()
        return {"level": self.level, "seed": self.seed, "state": state}

    @classmethod
    def from_json(cls, values: dict[str, object]) -> EpisodeSpec:
        """Undo :meth:`to_json`.

        Raises:
            ConfigError: no such level. ValueError, KeyError: the values are no episode.
        """
        level, state = values["level"], values["state"]
        return cls(
            level=None if level is None else find_level(str(level)).name,
            seed=int(str(values["seed"])),
            state=None if state is None else bytes.fromhex(str(state)),
        )


@dataclass
class BatchStep:
    """The outcome of one step of all slots, in arrays that the next step overwrites.

    Attributes:
        before: STATE_DTYPE (N,), the 13 values when the step began.
        after: STATE_DTYPE (N,), after its last controllable frame and before the skip to the next,
            so that a change of area is never a jump within a step; in an episode's last step, the
            values at the end.
        furthest_x_px: int32 (N,), furthest x of the episode, this step included.
        end: int8 (N,), a :class:`~mario.game.smb.end_reason.EndReason`; RUNNING where the episode
            goes on.
        steps: int32 (N,), steps of the episode, this one included.
        frames: int32 (N,), controllable frames of the episode; those of no input do not count.
        game_reward: int32 (N,), gym-super-mario-bros' own reward, summed over the step's frames.
            It is clipped per frame, so it cannot be computed from `before` and `after`.
        terminal_observations: (N, …) of the batch's kind, written where `end` is not RUNNING; the
            caller's buffer shows the next episode there.
        active: bool (N,), whether the slot played in this step.
    """

    before: StateArray
    after: StateArray
    furthest_x_px: npt.NDArray[np.int32]
    end: npt.NDArray[np.int8]
    steps: npt.NDArray[np.int32]
    frames: npt.NDArray[np.int32]
    game_reward: npt.NDArray[np.int32]
    terminal_observations: Observations
    active: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))

    @classmethod
    def empty(cls, slots: int, observation: ObservationKind) -> BatchStep:
        """Make the arrays for `slots` slots."""
        return cls(
            before=np.zeros(slots, STATE_DTYPE),
            after=np.zeros(slots, STATE_DTYPE),
            furthest_x_px=np.zeros(slots, np.int32),
            end=np.zeros(slots, np.int8),
            steps=np.zeros(slots, np.int32),
            frames=np.zeros(slots, np.int32),
            game_reward=np.zeros(slots, np.int32),
            terminal_observations=observation.zeros(slots),
            active=np.zeros(slots, np.bool_),
        )


class GameBatch(Protocol):
    """N games in N slots.

    Attributes:
        slots: number of slots, N.
        game: the settings of the game.
        buttons: the button byte of each action, 0…255.
        observation: the kind of observation that is written into the buffers.
    """

    slots: int
    game: GameConfig
    buttons: tuple[int, ...]
    observation: ObservationKind

    def begin(self, slot: int, spec: EpisodeSpec, out: Observations) -> None:
        """Start an episode in a slot; its running and its queued episode are dropped.

        Args:
            slot: 0 … N − 1.
            spec: the episode.
            out: (N, …) of the batch's kind; row `slot` receives the first observation.

        Raises:
            ConfigError: no such level. SaveStateError: the start state is not one.
        """
        ...

    def queue(self, slot: int, spec: EpisodeSpec | None) -> None:
        """Set the episode that a slot starts when its own ends; None: the slot becomes idle."""
        ...

    def step(self, actions: npt.NDArray[np.int64], out: Observations) -> BatchStep:
        """Hold one action in each slot for one step.

        A slot whose episode ends starts the queued one in the same call, which empties its queue.
        An idle slot is skipped.

        Args:
            actions: int64 (N,), indices into `buttons`; ignored for idle slots.
            out: (N, …) of the batch's kind, C-contiguous; receives the observations after the step.

        Raises:
            ConsoleError: an action or the buffer is invalid; no game was stepped.
        """
        ...

    def states(self) -> StateArray:
        """Copy the present 13 values of every slot: STATE_DTYPE (N,)."""
        ...

    def ram(self, slot: int) -> bytes:
        """Copy the 2,048 bytes of work RAM of a slot's console."""
        ...

    def screen_rgb(self, slot: int) -> UInt8Array:
        """Copy a slot's picture: uint8 (240, 256, 3)."""
        ...

    def console_state(self, slot: int) -> bytes:
        """Save the state of a slot's console, for an :class:`EpisodeSpec` to start from."""
        ...

    def snapshot(self, slot: int) -> bytes:
        """Save a whole slot: console, generator, counters, frame stack, queue."""
        ...

    def restore(self, slot: int, snapshot: bytes, out: Observations) -> None:
        """Restore a slot from a snapshot; row `slot` of `out` receives the observation.

        Raises:
            SaveStateError: the bytes are not a snapshot of this implementation.
        """
        ...

    def close(self) -> None:
        """Stop the threads and free the consoles."""
        ...


def check_buffer(out: Observations, slots: int, observation: ObservationKind) -> None:
    """Refuse a buffer that the observations of `slots` games do not fit.

    Raises:
        ConsoleError: another shape, dtype or memory order.
    """
    if out.shape[:1] != (slots,) or not observation.fits(out) or not out.flags.c_contiguous:
        expected = (slots, *observation.shape)
        raise ConsoleError(
            f"observation buffer {out.dtype} {out.shape}: expected C-contiguous "
            f"{observation.dtype} {expected}; make it with np.zeros(shape, np.{observation.dtype})"
        )
