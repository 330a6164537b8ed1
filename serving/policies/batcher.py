"""Batch the observations of concurrent requests into few inference calls, without a delay.

While the network runs, requests queue; when it returns, the queue becomes the next batch. A single
request never waits for others, and batches grow with the load. A batch reads the current version
once, so one version answers all of it.

Small batches run in the event loop: a thread costs two wake-ups and contention for the interpreter
lock, more than the milliseconds that the batch blocks. Large batches run in a thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mario.game.console.contract import UInt8Array
from mario.policy.manifest import Float32Array
from serving.http.errors import HttpError
from serving.policies.version_follower import LoadedVersion


@dataclass(frozen=True)
class NetworkOutput:
    """The network's output for the observations of one request.

    Attributes:
        version: the version that answered all rows.
        logits: float32 (N, A).
        values: float32 (N,).
        batch_observations: observations in the whole inference call.
    """

    version: LoadedVersion
    logits: Float32Array
    values: Float32Array
    batch_observations: int


_Job = tuple[UInt8Array, "asyncio.Future[NetworkOutput]"]


class Batcher:
    """Batches the observations of one event loop."""

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
        """Answer each batch with what ``version`` returns when the batch starts.

        Args:
            version: returns the current version; may raise HttpError.
            max_batch_observations: largest batch, unless a single request is larger.
            max_queue_observations: most observations that may wait.
            on_batch: called with the version, the number of observations and the seconds of each
                batch, in the thread that ran it.
            inline_observations: largest batch in the event loop; 0 runs all in the thread.
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
        """Observations that wait or are in the current batch."""
        return self._queued

    def start(self) -> None:
        """Start the thread; call it in the event loop that submits."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer the waiting requests, then stop the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def submit(self, observations: UInt8Array) -> asyncio.Future[NetworkOutput]:
        """Queue observations uint8 (N, 4, 84, 84), N ≥ 1; the future gets the output.

        Raises:
            HttpError: 503, too many observations wait.
        """
        if self._loop is None or self._stopping:
            raise HttpError(
                503, "stopping", "the service is stopping; try again", retry_after_seconds=1
            )
        count = len(observations)
        if self._queued and self._queued + count > self._max_queue:
            raise HttpError(
                503,
                "queue_full",
                f"{self._queued} observations already wait; expected at most {self._max_queue}; "
                "send fewer at a time or try again later",
                retry_after_seconds=1,
            )
        future: asyncio.Future[NetworkOutput] = self._loop.create_future()
        self._queued += count
        job = (observations, future)
        if self._inline == 0 or self._in_thread:
            self._hand_over([job])
        else:
            # Requests that submit in the same iteration of the event loop join the batch.
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
            return  # the event loop closed while the batch ran, so no request waits for it

    def _results(self, batch: Sequence[_Job], count: int) -> list[NetworkOutput | Exception]:
        results: list[NetworkOutput | Exception]
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
                results.append(NetworkOutput(version, logits[rows], values[rows], count))
                row = rows.stop
        except Exception as error:  # any error goes to the waiting requests, not to the thread
            results = [error] * len(batch)
        return results

    def _deliver_from_thread(
        self, batch: Sequence[_Job], results: Sequence[NetworkOutput | Exception], count: int
    ) -> None:
        self._in_thread -= len(batch)
        self._deliver(batch, results, count)

    def _deliver(
        self, batch: Sequence[_Job], results: Sequence[NetworkOutput | Exception], count: int
    ) -> None:
        self._queued -= count
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue  # the client disconnected
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
