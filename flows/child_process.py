"""Run a module as a child that exits when its parent dies.

A flow run that is killed (its worker is stopped, or the machine is out of memory) cannot stop its
child processes, so they watch the parent themselves.

`python -m flows.child_process PARENT MODULE …` is `python -m MODULE …`, except that the process
sends itself SIGTERM once the process PARENT is no longer its parent.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable

_POLL_SECONDS = 0.5
#: Time to stop cleanly after SIGTERM: to write a checkpoint and return a trial to the queue.
GRACE_SECONDS = 45.0


def watch_parent(parent: int, end: Callable[[], None]) -> None:
    """Block until the process `parent` is no longer this process's parent, then call `end`."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    end()


def _terminate() -> None:
    """Send this process SIGTERM, and exit after `GRACE_SECONDS` if it has not stopped."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def main() -> None:
    """Run a module until it ends or the parent dies."""
    parent, module = int(sys.argv.pop(1)), sys.argv.pop(1)
    threading.Thread(target=watch_parent, args=(parent, _terminate), daemon=True).start()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
