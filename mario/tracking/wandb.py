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
from mario.training.sinks import RunEnd, RunStart, patience_seconds, wait_patiently

log = logging.getLogger(__name__)

#: Records that wait for Weights & Biases, a few for each update; hours of a network that is away.
_WAITING = 20_000
#: What wandb's service may take, at the end of the process, beyond the sink's own patience.
_EXIT_SECONDS = 1.0
_SERVICE = "wandb-core"


class WandbSink(NumbersSink):
    """Logs to Weights & Biases, online or into files that `wandb sync` sends later.

    All of it happens in a thread of its own: with the network away, opening a run takes minutes.
    """

    name: ClassVar[str] = "wandb"

    def __init__(self, run_id: str, run_dir: Path, mode: Literal["offline", "online"]) -> None:
        """Prepare; needs the package wandb. The run opens with the training's start.

        Args:
            run_id: the run's id, so that a resumed run goes on in the same place.
            run_dir: where files are kept.
            mode: whether it is sent now, or later by `wandb sync`.
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
        """Begin to open the run."""
        self._thread = threading.Thread(
            target=self._work, args=(start,), name="write-wandb", daemon=True
        )
        self._thread.start()

    def on_end(self, end: RunEnd) -> None:
        """Close the run, and wait a little for what is not sent."""
        if self._thread is None or self._failure:
            return
        self._exit_code = 0 if end.status == RunStatus.FINISHED else 1
        if not wait_patiently(self._close, patience_seconds(end), end.stop):
            self._left_behind = True
            log.warning("Weights & Biases did not take everything in time; `wandb sync` sends it")
            _bound_exit()

    def _close(self, seconds: float) -> bool:
        """Wait so long for the thread to take all there is and end; whether it has."""
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
        """Hand numbers to the thread.

        Raises:
            ConnectionError: the run could not be opened, or so much waits that it must be dropped.
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
        """Open the run, log what comes, close it: the thread."""
        try:
            run = self._wandb.init(
                project="mario",
                id=self._run_id,
                resume="allow" if self._mode == "online" else None,
                mode=self._mode,
                dir=str(self._run_dir),
                name=start.config.name,
                config=start.config.model_dump(mode="json"),
                # Its summary on the terminal would hide this project's own.
                settings=self._wandb.Settings(silent=True),
            )
            while (numbers := self._waiting.get()) is not None:
                run.log(numbers)
            run.finish(exit_code=self._exit_code)
        except Exception as error:  # a library of others in a thread of ours
            self._failure = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            if not self._left_behind:  # that was said, and the log may be closed by now
                log.warning("Weights & Biases is left out: %s", self._failure)


def open_sink(opening: SinkOpening) -> WandbSink:
    """Open the sink; needs the package wandb."""
    mode = opening.config.sinks.wandb
    assert mode != "off", "a sink that is off is not opened"
    return WandbSink(opening.run.id, opening.run_dir, mode)


def _bound_exit() -> None:
    """Let the process end soon although wandb's service does not.

    wandb waits at exit for its service, a child process, and that for a network that is away: 84 s
    with a server that never answers, whatever its settings (`finish_timeout`, `init_timeout`). What
    the service had from the run is on the disk, for `wandb sync`.
    """
    leaving = threading.Event()

    def watch() -> None:
        leaving.wait()
        time.sleep(_EXIT_SECONDS)
        for pid in _services():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    # Begun now: at exit newer Pythons start no thread. Hooks run last in, first out, so that this
    # one comes before wandb's, which waits.
    threading.Thread(target=watch, name="end-wandb", daemon=True).start()
    atexit.register(leaving.set)


def _services() -> list[int]:
    """Service processes of wandb that this process has started; none where there is no /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, fields = stat.read_text().partition("(")[2].rpartition(")")
            if name.startswith(_SERVICE) and int(fields.split()[1]) == os.getpid():
                found.append(int(stat.parent.name))
    return found
