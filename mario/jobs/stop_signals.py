"""Turn SIGTERM and Ctrl-C into a request to stop cleanly."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """Let the first SIGTERM or Ctrl-C set `stop`; a second one ends the process at once.

    Only the main thread receives signals; in another thread this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.set()
        default = signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler
        signal.signal(number, default)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
