"""Follow the version of a role: load, verify, then swap it in; keep the old one on failure."""

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
from mario.game.smb.observations.pixels import OBSERVATION_SHAPE
from mario.policy.artefact import load_artefact
from mario.policy.onnx import OnnxPolicy
from serving.http.errors import HttpError
from serving.policies.sources import PolicySource, Role, VersionCard, VersionRef

logger = logging.getLogger("mario.serving")

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 30.0
_PASSWORD = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*@")
_WARM_UP_SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, eq=False)
class LoadedVersion:
    """A version that is ready to answer; immutable, so that a swap is one assignment.

    Attributes:
        ref: model, version and digest.
        policy: the network in an ONNX session.
        card: what the page shows about it.
        loaded_at: Unix time of the swap, seconds.
    """

    ref: VersionRef
    policy: OnnxPolicy
    card: VersionCard
    loaded_at: float


def load_version(source: PolicySource, ref: VersionRef, *, threads: int) -> LoadedVersion:
    """Fetch a version and verify it: digests, contract, golden answers; then warm it up.

    Raises:
        MarioError: it cannot be fetched, or a check fails.
    """
    artefact = load_artefact(source.fetch(ref))
    if artefact.digest != ref.digest:
        raise ArtefactError(
            f"{ref.model} version {ref.version}: got an artefact with digest {artefact.digest}; "
            f"expected {ref.digest}; the download is incomplete or the artefact was replaced; "
            "register it again"
        )
    _check_names(ref, artefact.manifest.action_names)
    policy = OnnxPolicy(artefact, threads=threads)
    policy.check_golden()
    for size in _WARM_UP_SIZES:
        policy.infer(np.zeros((size, *OBSERVATION_SHAPE), dtype=np.uint8))
    return LoadedVersion(ref, policy, source.card(ref), time.time())


def _check_names(ref: VersionRef, actions: tuple[str, ...]) -> None:
    """Check that names fit into headers, where commas separate the actions."""
    for name in (ref.model, ref.version, *actions):
        if not (name.isascii() and name.isprintable()) or "," in name:
            raise ArtefactError(
                f"{ref.model} version {ref.version!r}: got the name {name!r}; expected printable "
                "ASCII characters and no comma; rename it"
            )


def release_memory() -> None:
    """Return the memory of former versions to the system.

    `engine.tune_garbage_collection` makes full collections rare, and glibc keeps freed blocks of a
    few megabytes: without this a worker grew by a hundred megabytes in a minute of swaps. It takes
    some milliseconds, in the follower's thread.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


class VersionFollower:
    """Holds the current version of a role; polls the source in a thread."""

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
            poll_seconds: time between two polls.
            threads: threads of one inference call.
            on_swap: called with the role, the result (``swapped``, ``refused``, ``unreachable``,
                ``removed``), and the versions before and after; in the follower's thread.
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
        """The version that answers; None if there is none yet."""
        return self._current

    @property
    def last_error(self) -> str | None:
        """Why the last poll failed, or None."""
        return self._last_error

    def require(self) -> LoadedVersion:
        """Return the version that answers.

        Raises:
            HttpError: 503, there is none yet.
        """
        version = self._current
        if version is None:
            raise HttpError(
                503,
                "no_version",
                f"there is no {self._role} to answer with; promote a version, then try again",
                retry_after_seconds=2,
            )
        return version

    def poll(self) -> None:
        """Resolve the role once; load and swap in the version if it is another one."""
        try:
            ref = self._source.resolve(self._role)
        except Exception as error:  # whatever fails in the source, the current version stays
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
        except Exception as error:  # whatever fails, the version is not swapped in
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
        """Poll once, then go on polling in a thread."""
        self.poll()
        self._thread = threading.Thread(
            target=self._follow, name=f"follow-{self._role}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop polling."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _follow(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            self.poll()

    def _remember_failure(self, ref: VersionRef) -> None:
        # An upload may still be in progress, so try again, at growing intervals.
        again = ref == self._failed
        self._retry_seconds = (
            min(self._retry_seconds * 2, LAST_RETRY_SECONDS) if again else FIRST_RETRY_SECONDS
        )
        self._failed = ref
        self._retry_at = time.monotonic() + self._retry_seconds

    def _report(self, result: str, error: Exception) -> None:
        text = str(error) if isinstance(error, MarioError) else f"{type(error).__name__}: {error}"
        # An address in the message may hold a password; the message goes to the log and the page.
        text = _PASSWORD.sub("***@", text)
        if text != self._last_error:
            logger.warning("%s: %s: %s", self._role, result, text)
        self._last_error = text
        self._on_swap(self._role, result, self._current, self._current)
