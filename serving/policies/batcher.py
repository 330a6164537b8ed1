"""Answers the observations of many requests in few inference calls, without waiting for more.

While the network runs, requests gather; when it is done, all that gathered becomes the next batch.
A single request is never kept waiting for company, and under load batches grow by themselves. A
batch takes the current version once, so no version is mixed in it.

Small batches run in the event loop itself: handing them to a thread and back costs two wake-ups and
a fight for the interpreter lock, more than the milliseconds they block. Large ones go to a thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mario.policy.manifest import Float32Array, Uint8Array
from serving.http.errors import Refusal
from serving.policies.versions import LoadedVersion


@dataclass(frozen=True)
class Answer:
    """What the network said to the observations of one request.

    Attributes:
        version: the version that answered, the same for all rows.
        logits: float32 (N, A).
        values: float32 (N,).
        batch_observations: observations in the inference call that it was part of.
    """

    version: LoadedVersion
    logits: Float32Array
    values: Float32Array
    batch_observations: int


_Job = tuple[Uint8Array, "asyncio.Future[Answer]"]


class Batcher:
    """Gathers observations of one event loop and answers them in a thread of its own."""

    def __init__(
        self,
        version: Callable[[], LoadedVersion],
        *,
        max_batch_observations: int,
        max_queue_observations: int,
        on_batch: Callable[[LoadedVersion, int, float], None],
        inline_observations: int = 0,
        name: str = "inference",
    ) -> None:
        """Answer with whatever ``version`` returns when a batch starts.

        Args:
            version: returns the version that answers; may raise a refusal.
            max_batch_observations: a batch takes no further request beyond this many.
            max_queue_observations: more observations than this may not wait.
            on_batch: called with the version that answered a batch, its number of observations and
                its seconds, in whatever thread ran it.
            inline_observations: batches up to this size run in the event loop; 0 runs none there.
            name: the thread's name.
        """
        self._version = version
        self._max_batch = max_batch_observations
        self._max_queue = max_queue_observations
        self._on_batch = on_batch
        self._inline = inline_observations
        self._name = name
        self._gathered: list[_Job] = []
        self._jobs: deque[_Job] = deque()
        self._queued = 0
        self._in_thread = 0
        self._wake = threading.Condition()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def queued_observations(self) -> int:
        """Observations that wait or are being answered."""
        return self._queued

    def start(self) -> None:
        """Start the thread; call it in the event loop that will ask."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer what is waiting, then stop the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def submit(self, observations: Uint8Array) -> asyncio.Future[Answer]:
        """Queue observations uint8 (N, 4, 84, 84), N ≥ 1; the future gets the answer.

        Raises:
            Refusal: 503, too many observations wait.
        """
        if self._loop is None or self._stopping:
            raise Refusal(
                503, "stopping", "the service is stopping; try again", retry_after_seconds=1
            )
        count = len(observations)
        if self._queued and self._queued + count > self._max_queue:
            raise Refusal(
                503,
                "queue_full",
                f"{self._queued} observations wait already and at most {self._max_queue} may; "
                "send fewer at a time or try again later",
                retry_after_seconds=1,
            )
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._queued += count
        job = (observations, future)
        if self._inline == 0 or self._in_thread:
            self._hand_over([job])
        else:
            # What other requests submit in this turn of the loop joins the batch.
            if not self._gathered:
                self._loop.call_soon(self._run_gathered)
            self._gathered.append(job)
        return future

    def _run_gathered(self) -> None:
        jobs, self._gathered = self._gathered, []
        count = sum(len(job[0]) for job in jobs)
        if count > self._inline or self._in_thread:
            self._hand_over(jobs)
        else:
            self._deliver(jobs, self._results(jobs, count), count)

    def _hand_over(self, jobs: Sequence[_Job]) -> None:
        self._in_thread += len(jobs)
        with self._wake:
            self._jobs.extend(jobs)
            self._wake.notify()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._jobs:
                    if self._stopping:
                        return
                    self._wake.wait()
                batch = [self._jobs.popleft()]
                count = len(batch[0][0])
                while self._jobs and count + len(self._jobs[0][0]) <= self._max_batch:
                    batch.append(self._jobs.popleft())
                    count += len(batch[-1][0])
            self._answer(batch, count)

    def _answer(self, batch: Sequence[_Job], count: int) -> None:
        results = self._results(batch, count)
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._deliver_from_thread, batch, results, count)
        except RuntimeError:
            return  # the event loop closed while the batch ran; nobody waits any more

    def _results(self, batch: Sequence[_Job], count: int) -> list[Answer | Exception]:
        results: list[Answer | Exception]
        try:
            version = self._version()
            observations = (
                batch[0][0] if len(batch) == 1 else np.concatenate([job[0] for job in batch])
            )
            started = time.perf_counter()
            logits, values = version.policy.infer(observations)
            self._on_batch(version, count, time.perf_counter() - started)
            results, row = [], 0
            for job_observations, _ in batch:
                rows = slice(row, row + len(job_observations))
                results.append(Answer(version, logits[rows], values[rows], count))
                row = rows.stop
        except Exception as error:  # whatever went wrong goes to those who wait, not to the thread
            results = [error] * len(batch)
        return results

    def _deliver_from_thread(
        self, batch: Sequence[_Job], results: Sequence[Answer | Exception], count: int
    ) -> None:
        self._in_thread -= len(batch)
        self._deliver(batch, results, count)

    def _deliver(
        self, batch: Sequence[_Job], results: Sequence[Answer | Exception], count: int
    ) -> None:
        self._queued -= count
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue  # the client went away
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
