"""What a container of a flow run starts first: Prefect below it, and SIGTERM handed on to training.

`docker stop`, an eviction and a shutdown of the machine signal a container's first process only.
`prefect flow-run execute` is no good as that process: it has the flow run's own process in another
session, asks it to leave its state alone, and where that has a SIGTERM handler of its own (training
has: `mario.jobs.train.stopping_on_signals`) kills it at once and without a checkpoint
(`prefect.utilities.engine.commit_control_intent_and_ack` refuses, `prefect.cli.flow_run.execute`
goes on with SIGKILL). So the signal goes to the flow run's process, which writes its checkpoint and
says how the flow run ended. Before there is such a process it goes to Prefect, which schedules the
flow run again.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

#: What stands before Prefect's own command in every container (`flows/work_pools.py`).
ENTRY_COMMAND = ("python", "-m", "flows.container_entrypoint")
#: Tells Prefect to schedule a flow run again that is told to end before its process is there.
WHILE_IT_STARTS = {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule"}
#: What may pass until a process is there that takes the signal, and until its end, in s. Training
#: ends within 10 s; Prefect, MLflow and the store are told after that.
GRACE_SECONDS = 60

#: How soon after a request to end it is looked again whether somebody takes it.
_LOOK_SECONDS = 0.1
_HELD_BACK = {signal.SIGTERM, signal.SIGCHLD}


def run(command: Sequence[str]) -> int:
    """Run a command to its end; returns its exit status as a shell does (143: ended by SIGTERM).

    Whoever is process 1 inherits orphans: they are reaped here as well.
    """
    # From here on, so that no request to end is lost: the kernel drops what process 1 neither
    # handles nor blocks.
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    child = os.posix_spawnp(command[0], list(command), os.environ, setsigmask=())
    asked = False
    while (code := _reap(child)) is None:
        if asked and (listener := _who_takes_sigterm(child)) is not None:
            os.kill(listener, signal.SIGTERM)
            asked = False
        got = signal.sigtimedwait(_HELD_BACK, _LOOK_SECONDS if asked else 3600.0)
        asked |= got is not None and got.si_signo == signal.SIGTERM
    return code


def _reap(child: int) -> int | None:
    """Bury whoever has ended; the exit status of `child` once that has."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return None
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _who_takes_sigterm(prefect: int) -> int | None:
    """The flow run's process, or Prefect's where that is not there yet; None: nobody listens yet.

    A process that has no handler yet would die of the signal, and nobody would say why.
    """
    found = None
    for file in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in file.read_text().splitlines())
        except (OSError, ValueError):  # it has ended meanwhile
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
