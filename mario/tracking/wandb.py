"""The Weights & Biases sink, online or offline; it never waits for the network."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Literal

from mario.config.run_states import RunStatus
from mario.tracking.numbers import NumbersSink
from mario.tracking.opening import SinkOpening
from mario.training.sinks import RunEnd, RunStart, end_timeout_seconds, wait_until_done

log = logging.getLogger(__name__)

#: Records that may wait, a few for each update; enough for hours without a network.
_WAITING = 20_000
#: How long wandb's service may delay the end of the process, after the sink has waited.
_EXIT_SECONDS = 1.0
_SERVICE = "wandb-core"


class WandbSink(NumbersSink):
    """Logs to Weights & Biases, online or into files that `wandb sync` sends later.

    A thread makes all calls of wandb: without a network, opening a run takes minutes.
    """

    name: ClassVar[str] = "wandb"

    def __init__(self, run_id: str, run_dir: Path, mode: Literal["offline", "online"]) -> None:
        """Prepare; needs the package wandb. The run opens when training starts.

        Args:
            run_id: the run's id; a resumed run continues the same wandb run.
            run_dir: where files are kept.
            mode: `online` sends now, `offline` leaves it to `wandb sync`.
        """
        import wandb

        self._wandb = wandb
        self._run_id = run_id
        self._run_dir = run_dir
        self._mode = mode
        self._waiting: queue.Queue[dict[str, float] | None] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None
        self._exit_code = 1
        self._told_end = False
        self._left_behind = False
        self._failure = ""

    def on_start(self, start: RunStart) -> None:
        """Open the run, in the thread."""
        self._thread = threading.Thread(
            target=self._work, args=(start,), name="write-wandb", daemon=True
        )
        self._thread.start()

    def on_end(self, end: RunEnd) -> None:
        """Close the run, and wait a little for what is not sent yet."""
        if self._thread is None or self._failure:
            return
        self._exit_code = 0 if end.status == RunStatus.FINISHED else 1
        if not wait_until_done(self._close, end_timeout_seconds(end), end.stop):
            self._left_behind = True
            log.warning("Weights & Biases did not take everything in time; `wandb sync` sends it")
            _bound_exit()

    def _close(self, seconds: float) -> bool:
        """Wait up to `seconds` for the thread to log everything and end; returns whether it has."""
        assert self._thread is not None
        if not self._told_end:
            try:
                self._waiting.put(None, timeout=seconds)
            except queue.Full:
                return False
            self._told_end = True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _write(self, numbers: dict[str, float], steps: int) -> None:
        """Pass numbers to the thread.

        Raises:
            ConnectionError: the run could not be opened, or too many records wait.
        """
        if self._failure:
            raise ConnectionError(self._failure)
        try:
            self._waiting.put_nowait({**numbers, "steps": steps})
        except queue.Full:
            raise ConnectionError(
                f"{_WAITING} records wait for Weights & Biases; this one is dropped"
            ) from None

    def _work(self, start: RunStart) -> None:
        """Open the run, log the records, close it: the work of the thread."""
        try:
            run = self._wandb.init(
                project="mario",
                id=self._run_id,
                resume="allow" if self._mode == "online" else None,
                mode=self._mode,
                dir=str(self._run_dir),
                name=start.config.name,
                config=start.config.model_dump(mode="json"),
                # Its summary on the terminal would hide ours.
                settings=self._wandb.Settings(silent=True),
            )
            while (numbers := self._waiting.get()) is not None:
                run.log(numbers)
            run.finish(exit_code=self._exit_code)
        except Exception as error:  # a third-party library in our thread
            self._failure = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            if not self._left_behind:  # that was logged, and the log may be closed by now
                log.warning("Weights & Biases is left out: %s", self._failure)


def open_sink(opening: SinkOpening) -> WandbSink:
    """Open the sink; needs the package wandb."""
    mode = opening.config.sinks.wandb
    assert mode != "off", "a sink that is off is not opened"
    return WandbSink(opening.run.id, opening.run_dir, mode)


def _bound_exit() -> None:
    """Bound the time that wandb's service delays the end of the process.

    At exit wandb waits for its service, a child process, which waits for the network: 84 s with a
    server that never answers, whatever its settings (`finish_timeout`, `init_timeout`). The records
    that the service has received are on the disk, for `wandb sync`.
    """
    leaving = threading.Event()

    def watch() -> None:
        leaving.wait()
        time.sleep(_EXIT_SECONDS)
        for pid in _services():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    # The thread starts now: newer Python versions start none at exit. Exit hooks run in reverse
    # order, so this one runs before wandb's, which waits.
    threading.Thread(target=watch, name="end-wandb", daemon=True).start()
    atexit.register(leaving.set)


def _services() -> list[int]:
    """List the processes of wandb's service that this process started; empty without /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, fields = stat.read_text().partition("(")[2].rpartition(")")
            if name.startswith(_SERVICE) and int(fields.split()[1]) == os.getpid():
                found.append(int(stat.parent.name))
    return found
