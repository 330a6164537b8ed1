"""Processes that end when the one that started them is gone, however it went.

A flow run that is killed (by a worker that is stopped, or for want of memory) can end nobody. What
it started looks after it instead.

`python -m flows.child_process PARENT MODULE …` is `python -m MODULE …`, which is asked to end, as
by SIGTERM, once the process PARENT is not its parent any more.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable

#: How often a process looks whether its parent is still there.
_WATCH_SECONDS = 0.5
#: How long it may take to end well: a checkpoint is written, a trial given back.
GRACE_SECONDS = 45.0


def watch_parent(parent: int, end: Callable[[], None]) -> None:
    """Call `end` as soon as `parent` is not this process's parent any more; for a thread."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    end()


def end_well() -> None:
    """Ask this process to end as SIGTERM does, and end it where it does not."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def main() -> None:
    """Run a module until it ends or the parent is gone."""
    parent, module = int(sys.argv.pop(1)), sys.argv.pop(1)
    threading.Thread(target=watch_parent, args=(parent, end_well), daemon=True).start()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
