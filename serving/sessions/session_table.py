"""Sessions of clients: their frame stacks, in one file that all workers share.

The file is a table with a fixed number of slots, mapped into each worker's memory, so memory is
bounded and any worker can continue any session. While a request uses a slot, a byte-range lock
(``fcntl``) holds it against other processes, and a set of busy slots against other requests of this
process.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mario.config.evaluation import ACTION_SELECTIONS, ActionSelection
from mario.game.console.contract import UInt8Array
from mario.game.rng import SplitMix64
from mario.game.smb.observations.pixels import OBSERVATION_SHAPE, FrameStack
from serving.http.errors import HttpError, bad_request
from serving.policies.sources import Role

_SLOT = np.dtype(
    [
        ("token", "S32"),
        ("used_at", "<f8"),
        ("frames", "<u8"),
        ("role", "u1"),
        ("mode", "u1"),
        ("random", "<u8"),
        ("stack", "u1", OBSERVATION_SHAPE),
    ]
)
_ROLES: tuple[Role, ...] = ("champion", "challenger")
_MODES: tuple[ActionSelection | None, ...] = (None, *ACTION_SELECTIONS)
_TOKEN_LENGTH = 32
_SLOT_DIGITS = 5


@dataclass
class Session:
    """One session while a request uses it; :meth:`SessionTable.use` saves its changes.

    Attributes:
        name: the name that the client sends.
        slot: row in the table.
        role: the version that answers; fixed at the start, so that a canary plays whole games.
        mode: greedy or sample; None uses the policy's own.
        frames: frames received so far.
        generator: generator for sampling.
        stack: the last four frames.
    """

    name: str
    slot: int
    role: Role
    mode: ActionSelection | None
    frames: int
    generator: SplitMix64
    stack: FrameStack

    def push(self, frame: UInt8Array) -> UInt8Array:
        """Add one frame uint8 (84, 84); return the observation uint8 (4, 84, 84)."""
        if self.frames == 0:
            self.stack.fill(frame)
        else:
            self.stack.push(frame)
        self.frames += 1
        return self.stack.observation()


class SessionTable:
    """A bounded number of sessions, shared by all workers through a file."""

    def __init__(self, path: Path, capacity: int, timeout_seconds: float) -> None:
        """Open the table; create the file if it does not exist.

        Args:
            path: the file.
            capacity: most sessions at once.
            timeout_seconds: a session expires after this time without a request.
        """
        self._capacity = capacity
        self._timeout = timeout_seconds
        self._busy: set[int] = set()
        path.parent.mkdir(parents=True, exist_ok=True)
        size = max(1, capacity) * _SLOT.itemsize
        # Never closed: closing any descriptor of the file drops all locks of the process.
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, size)
        if os.fstat(self._file).st_size != size:
            os.ftruncate(self._file, 0)
            os.ftruncate(self._file, size)
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, size)
        self._end = size
        self._slots: np.ndarray[Any, np.dtype[np.void]] = np.memmap(
            path, dtype=_SLOT, mode="r+", shape=(max(1, capacity),)
        )

    def count(self) -> int:
        """Number of live sessions, over all workers."""
        return int((self._slots["used_at"] >= time.time() - self._timeout).sum())

    @property
    def timeout_seconds(self) -> float:
        """A session expires after this time without a request."""
        return self._timeout

    def create(self, role: Role, mode: ActionSelection | None, seed: int | None) -> str:
        """Start a session and return its name.

        Raises:
            HttpError: 429, all slots are in use.
        """
        # The byte after the table is the lock of the whole table; held for microseconds.
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, self._end)
        try:
            now = time.time()
            used_at = self._slots["used_at"]
            free = [
                int(slot)
                for slot in np.flatnonzero(used_at < now - self._timeout)
                if int(slot) not in self._busy
            ]
            if not free or self._capacity == 0:
                oldest = float(used_at.min()) if self._capacity else now
                wait = max(1, int(oldest + self._timeout - now) + 1)
                raise HttpError(
                    429,
                    "sessions_full",
                    f"all {self._capacity} sessions are in use; end one with DELETE, or wait",
                    retry_after_seconds=wait,
                )
            slot = free[0]
            token = secrets.token_hex(_TOKEN_LENGTH // 2)
            row = self._slots[slot]
            row["token"] = token.encode()
            row["frames"] = 0
            row["role"] = _ROLES.index(role)
            row["mode"] = _MODES.index(mode)
            row["random"] = secrets.randbits(64) if seed is None else seed
            row["used_at"] = now
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._end)
        return f"{slot:0{_SLOT_DIGITS}x}{token}"

    @contextmanager
    def use(self, name: str) -> Iterator[Session]:
        """Lock a session while the block runs; save it if the block raises nothing.

        Raises:
            HttpError: 400 or 404, no such session; 410, expired; 409, in use.
        """
        slot, token = self._parse(name)
        with self._hold(slot):
            row = self._row(slot, token)
            if row["used_at"] < time.time() - self._timeout:
                raise HttpError(
                    410,
                    "session_expired",
                    f"this session expired after {self._timeout:g} s without a request; "
                    "start another",
                )
            stack = FrameStack()
            stack.restore(row["stack"])
            session = Session(
                name,
                slot,
                _ROLES[int(row["role"])],
                _MODES[int(row["mode"])],
                int(row["frames"]),
                SplitMix64(int(row["random"])),
                stack,
            )
            yield session
            row["stack"] = session.stack.observation()
            row["frames"] = session.frames
            row["random"] = session.generator.state
            row["used_at"] = time.time()

    def delete(self, name: str) -> None:
        """End a session.

        Raises:
            HttpError: as :meth:`use`.
        """
        slot, token = self._parse(name)
        with self._hold(slot):
            row = self._row(slot, token)
            row["token"] = b""
            row["used_at"] = 0

    def _parse(self, name: str) -> tuple[int, bytes]:
        right = (
            len(name) == _SLOT_DIGITS + _TOKEN_LENGTH
            and name.isascii()
            and all(c in "0123456789abcdef" for c in name)
        )
        if not right:
            raise bad_request(
                "session", "this is not the name of a session; POST /sessions gives one"
            )
        slot = int(name[:_SLOT_DIGITS], 16)
        if slot >= self._capacity:
            raise _unknown()
        return slot, name[_SLOT_DIGITS:].encode()

    def _row(self, slot: int, token: bytes) -> np.void:
        row: np.void = self._slots[slot]
        if not secrets.compare_digest(bytes(row["token"]), token):
            raise _unknown()
        return row

    @contextmanager
    def _hold(self, slot: int) -> Iterator[None]:
        busy = HttpError(
            409,
            "session_busy",
            "this session is answering another request; send one frame at a time",
            retry_after_seconds=1,
        )
        if slot in self._busy:
            raise busy
        start = slot * _SLOT.itemsize
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, start)
        except OSError:
            raise busy from None
        self._busy.add(slot)
        try:
            yield
        finally:
            self._busy.discard(slot)
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, start)


def _unknown() -> HttpError:
    return HttpError(
        404, "session_unknown", "there is no such session, or it was ended; start another"
    )
