"""A batch whose observations are computed from pixels and memory of another batch."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mario.errors import SaveStateError
from mario.game.batch.contract import BatchStep, EpisodeSpec, GameBatch, check_buffer
from mario.game.console.contract import RAM_BYTES, UInt8Array
from mario.game.smb.observations.contract import ObservationKind, Observations

_MAGIC = b"MOBS"


class ObservedBatch:
    """The games of a batch, with another kind of observation.

    The queue is kept here and not in the batch, because the memory at an episode's end must be read
    before the slot starts the next episode.
    """

    def __init__(self, games: GameBatch, observation: ObservationKind) -> None:
        """Wrap a batch, which is closed together with this one."""
        assert observation.observe is not None
        self.slots = games.slots
        self.game = games.game
        self.buttons = games.buttons
        self.observation = observation
        self.states = games.states
        self.ram = games.ram
        self.screen_rgb = games.screen_rgb
        self.console_state = games.console_state
        self.close = games.close
        self._games = games
        self._observe = observation.observe
        self._queued: list[EpisodeSpec | None] = [None] * games.slots
        self._pixels: UInt8Array = games.observation.zeros(games.slots)
        self._ram = np.zeros((games.slots, RAM_BYTES), np.uint8)
        self._terminal = observation.zeros(games.slots)

    def begin(self, slot: int, spec: EpisodeSpec, out: Observations) -> None:
        """Start an episode in a slot."""
        check_buffer(out, self.slots, self.observation)
        self._games.begin(slot, spec, self._pixels)
        self._queued[slot] = None
        self._write([slot], self._pixels, out)

    def queue(self, slot: int, spec: EpisodeSpec | None) -> None:
        """Set the next episode of a slot."""
        self._games.queue(slot, spec)  # refuses an impossible spec
        self._games.queue(slot, None)
        self._queued[slot] = spec

    def step(self, actions: npt.NDArray[np.int64], out: Observations) -> BatchStep:
        """Hold one action in each slot for one step."""
        check_buffer(out, self.slots, self.observation)
        result = self._games.step(actions, self._pixels)
        ended = np.flatnonzero(result.end)
        self._pixels[ended] = result.terminal_observations[ended]
        self._write(np.flatnonzero(result.active), self._pixels, out)
        self._terminal[ended] = out[ended]
        result = replace(result, terminal_observations=self._terminal)
        for slot in map(int, ended):
            spec = self._queued[slot]
            if spec is not None:
                self.begin(slot, spec, out)
        return result

    def snapshot(self, slot: int) -> bytes:
        """Save a whole slot."""
        spec = self._queued[slot]
        queued = json.dumps(None if spec is None else spec.to_json()).encode()
        body = struct.pack("<I", len(queued)) + queued + self._games.snapshot(slot)
        return _MAGIC + struct.pack("<I", zlib.crc32(body)) + body

    def restore(self, slot: int, snapshot: bytes, out: Observations) -> None:
        """Restore a slot from a snapshot."""
        check_buffer(out, self.slots, self.observation)
        body = snapshot[8:]
        if snapshot[:4] != _MAGIC or snapshot[4:8] != struct.pack("<I", zlib.crc32(body)):
            raise SaveStateError(
                f"{len(snapshot)} bytes that are no snapshot of games with the observation "
                f"{self.observation.name}: expected what snapshot() returned; resume with the "
                "observation the run was started with"
            )
        start = 4 + int(struct.unpack_from("<I", body)[0])
        queued = json.loads(body[4:start])
        self._games.restore(slot, body[start:], self._pixels)
        self._queued[slot] = None if queued is None else EpisodeSpec.from_json(queued)
        self._write([slot], self._pixels, out)

    def _write(
        self, slots: list[int] | npt.NDArray[np.intp], pixels: UInt8Array, out: Observations
    ) -> None:
        """Write the present observations of some slots."""
        for slot in slots:
            self._ram[slot] = np.frombuffer(self._games.ram(int(slot)), np.uint8)
        out[slots] = self._observe(pixels[slots], self._ram[slots])
