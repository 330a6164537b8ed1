"""Loads a version aside, makes sure of it, and swaps one reference; a failure keeps the old."""

from __future__ import annotations

import ctypes
import gc
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mario.errors import ArtefactError, MarioError
from mario.policy.artefact import load_artefact
from mario.policy.manifest import OBSERVATION_SHAPE
from mario.policy.onnx import OnnxPolicy
from serving.http.errors import Refusal
from serving.policies.sources import Card, PolicySource, Role, VersionRef

logger = logging.getLogger("mario.serving")

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 30.0
_PASSWORD = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*@")
_WARM_UP_SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, eq=False)
class LoadedVersion:
    """A version that is ready to answer. Immutable, so that one reference is the whole swap.

    Attributes:
        ref: its name.
        policy: the network behind a session.
        card: what the page tells about it.
        loaded_at: Unix time of the swap, seconds.
    """

    ref: VersionRef
    policy: OnnxPolicy
    card: Card
    loaded_at: float


def load_version(source: PolicySource, ref: VersionRef, *, threads: int) -> LoadedVersion:
    """Bring a version here and make sure of it: digests, contract, golden answers, warm-up.

    Raises:
        MarioError: whatever is wrong with it.
    """
    artefact = load_artefact(source.fetch(ref))
    if artefact.digest != ref.digest:
        raise ArtefactError(
            f"{ref.model} version {ref.version}: got an artefact with digest {artefact.digest}; "
            f"expected {ref.digest}; it is half downloaded or was replaced, register it again"
        )
    _check_names(ref, artefact.manifest.action_names)
    policy = OnnxPolicy(artefact, threads=threads)
    policy.check_golden()
    for size in _WARM_UP_SIZES:
        policy.infer(np.zeros((size, *OBSERVATION_SHAPE), dtype=np.uint8))
    return LoadedVersion(ref, policy, source.card(ref), time.time())


def _check_names(ref: VersionRef, actions: tuple[str, ...]) -> None:
    """Make sure that names fit into answers: headers hold them, the actions with commas between."""
    for name in (ref.model, ref.version, *actions):
        if not (name.isascii() and name.isprintable()) or "," in name:
            raise ArtefactError(
                f"{ref.model} version {ref.version!r}: got the name {name!r}; expected printable "
                "ASCII characters and no comma; name it otherwise"
            )


def release_memory() -> None:
    """Give what earlier versions left back to the system.

    The collector is told to look at old objects hardly ever (`engine.quiet_the_collector`), and
    glibc keeps freed pieces of a few megabytes for itself: without this a worker grew by a hundred
    megabytes in a minute of swaps. It costs some milliseconds, in the follower's thread.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


class VersionFollower:
    """Keeps the version that a role has now, following the source in a thread of its own."""

    def __init__(
        self,
        source: PolicySource,
        role: Role,
        *,
        poll_seconds: float,
        threads: int = 1,
        on_swap: Callable[[Role, str, LoadedVersion | None, LoadedVersion | None], None],
    ) -> None:
        """Follow ``role`` of ``source``.

        Args:
            source: where versions come from.
            role: champion or challenger.
            poll_seconds: time between two looks.
            threads: threads of one inference call.
            on_swap: called with the role, the result (``swapped``, ``refused``, ``unreachable``,
                ``removed``), and the versions before and now; from the follower's thread.
        """
        self._source = source
        self._role: Role = role
        self._poll_seconds = poll_seconds
        self._threads = threads
        self._on_swap = on_swap
        self._current: LoadedVersion | None = None
        self._failed: VersionRef | None = None
        self._retry_at = 0.0
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._last_error: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def current(self) -> LoadedVersion | None:
        """The version that answers now."""
        return self._current

    @property
    def last_error(self) -> str | None:
        """Why the last look did not end well, or None."""
        return self._last_error

    def require(self) -> LoadedVersion:
        """Return the version that answers now.

        Raises:
            Refusal: 503, there is none yet.
        """
        version = self._current
        if version is None:
            raise Refusal(
                503,
                "no_version",
                f"got no {self._role} to answer with; promote a version, then try again",
                retry_after_seconds=2,
            )
        return version

    def look(self) -> None:
        """Look once: resolve, and if it is another version load it and swap."""
        try:
            ref = self._source.resolve(self._role)
        except Exception as error:  # any failure of the source keeps the version that answers
            self._report("unreachable", error)
            return
        before = self._current
        if ref is None:
            self._last_error = None
            if before is not None and self._role == "challenger":
                self._current = None
                self._on_swap(self._role, "removed", before, None)
            return
        if before is not None and ref == before.ref:
            self._failed, self._last_error = None, None
            return
        if ref == self._failed and time.monotonic() < self._retry_at:
            return
        try:
            version = load_version(self._source, ref, threads=self._threads)
        except Exception as error:  # a version that fails in whatever way is not swapped in
            self._remember_failure(ref)
            self._report("refused", error)
            return
        finally:
            release_memory()
        self._current = version
        self._failed, self._last_error = None, None
        logger.info("%s is now %s version %s (%s)", self._role, ref.model, ref.version, ref.digest)
        self._on_swap(self._role, "swapped", before, version)

    def start(self) -> None:
        """Look once at once, then go on looking in a thread."""
        self.look()
        self._thread = threading.Thread(
            target=self._follow, name=f"follow-{self._role}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _follow(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            self.look()

    def _remember_failure(self, ref: VersionRef) -> None:
        # A half-uploaded version may become whole, so it is tried again, ever more seldom.
        again = ref == self._failed
        self._retry_seconds = (
            min(self._retry_seconds * 2, LAST_RETRY_SECONDS) if again else FIRST_RETRY_SECONDS
        )
        self._failed = ref
        self._retry_at = time.monotonic() + self._retry_seconds

    def _report(self, result: str, error: Exception) -> None:
        text = str(error) if isinstance(error, MarioError) else f"{type(error).__name__}: {error}"
        # An address may hold a password, and what it is part of goes to the log and the page.
        text = _PASSWORD.sub("***@", text)
        if text != self._last_error:
            logger.warning("%s: %s: %s", self._role, result, text)
        self._last_error = text
        self._on_swap(self._role, result, self._current, self._current)
