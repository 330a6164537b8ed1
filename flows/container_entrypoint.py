"""The first process of a flow run's container: it runs Prefect and forwards SIGTERM to training.

`docker stop`, a pod's eviction and a machine's shutdown signal only the container's first process.
`prefect flow-run execute` cannot be that process: it runs the flow run in a child in another
session, and if that child handles SIGTERM itself, as training does
(`mario.jobs.stop_signals.stopping_on_signals`), Prefect kills it without a checkpoint
(`prefect.utilities.engine.commit_control_intent_and_ack` refuses, and
`prefect.cli.flow_run.execute` sends SIGKILL). So this process forwards SIGTERM to the flow run's
process, which writes its checkpoint and reports its state. Before that process exists, SIGTERM goes
to Prefect, which schedules the flow run again.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

#: Precedes Prefect's command in every container (`flows/work_pools.py`).
ENTRY_COMMAND = ("python", "-m", "flows.container_entrypoint")
#: Makes Prefect reschedule a flow run if SIGTERM arrives before the flow run's process exists.
SIGTERM_ENVIRONMENT = {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule"}
#: Time from SIGTERM to the container's end, in s. Training stops within 10 s; reports to Prefect,
#: MLflow and the store follow.
GRACE_SECONDS = 60

#: Interval at which a pending SIGTERM looks for a process that handles it.
_POLL_SECONDS = 0.1
_BLOCKED_SIGNALS = {signal.SIGTERM, signal.SIGCHLD}


def run(command: Sequence[str]) -> int:
    """Run a command and return its exit status as a shell does (143: killed by SIGTERM).

    Process 1 inherits orphaned processes; they are reaped here as well.
    """
    # First of all: the kernel drops signals that process 1 neither handles nor blocks.
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_SIGNALS)
    child = os.posix_spawnp(command[0], list(command), os.environ, setsigmask=())
    pending = False
    while (code := _reap(child)) is None:
        if pending and (target := _sigterm_target(child)) is not None:
            os.kill(target, signal.SIGTERM)
            pending = False
        got = signal.sigtimedwait(_BLOCKED_SIGNALS, _POLL_SECONDS if pending else 3600.0)
        pending |= got is not None and got.si_signo == signal.SIGTERM
    return code


def _reap(child: int) -> int | None:
    """Reap all processes that have exited; return the exit status of `child` if it is one."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return None
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _sigterm_target(prefect: int) -> int | None:
    """Find the flow run's process, else Prefect's; None if neither handles SIGTERM yet.

    A process without a handler would be killed by the signal and could not report why.
    """
    found = None
    for file in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in file.read_text().splitlines())
        except (OSError, ValueError):  # it exited meanwhile
            continue
        if not int(fields.get("SigCgt", "0"), 16) >> (signal.SIGTERM - 1) & 1:
            continue
        if int(fields["PPid"]) == prefect:
            return int(file.parent.name)
        if int(file.parent.name) == prefect:
            found = prefect
    return found


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
