"""The sweep's own run in the store: the parent of its trials' runs, kept alive by every worker."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mario.config.run_states import RunStatus
from mario.config.sweep import Sweep
from mario.errors import RegistryError, RunIsBusy
from mario.jobs.context import JobContext
from mario.jobs.provenance import git_commit, git_diff, library_versions
from mario.jobs.sweeps.describe import best_of
from mario.jobs.sweeps.storage import load_trials
from mario.jobs.sweeps.study import SweepStudy
from mario.jobs.sweeps.tracking import begin_sweep_run, end_sweep_run
from mario.store.check import SWEEP_ALGORITHM, run_is_alive
from mario.store.records import AttemptEnd, Heartbeat, NewRun, Run, new_id
from mario.store.store import ExperimentStore

log = logging.getLogger(__name__)

#: How long the end of a worker waits for its last heartbeat.
_LAST_HEARTBEAT_SECONDS = 5.0


class ParentRun:
    """The run that stands for a sweep; the first worker begins it, any other adopts it."""

    def __init__(self, name: str, sweep: Sweep, context: JobContext, study: SweepStudy) -> None:
        """Prepare; nothing is stored yet.

        Args:
            name: the sweep's name.
            sweep: its definition.
            context: store and tracking.
            study: knows the run's id.
        """
        self._name = name
        self._sweep = sweep
        self._context = context
        self._study = study

    def keep(self) -> None:
        """Begin the run, or give it a heartbeat; call it under the sweep's lock.

        Raises:
            StoreError, RegistryError: the database or MLflow is unreachable.
        """
        run_id = self._study.parent_run_id
        if run_id is None:
            run_id = new_id("sweep")
            self._study.set_parent(run_id)
        store = self._context.store
        run = store.runs.find(run_id)
        run = self._start(run_id) if run is None else _give_heartbeat(store, run)
        if self._sweep.base.sinks.mlflow and run.mlflow_run_id is None:
            tracked = begin_sweep_run(self._context.tracking, run, self._sweep.definition())
            store.runs.set_mlflow_run(run_id, tracked)

    def _start(self, run_id: str) -> Run:
        return self._context.store.runs.start(
            NewRun(
                id=run_id,
                name=self._name,
                task=self._sweep.base.task,
                algorithm=SWEEP_ALGORITHM,
                config=self._sweep.definition(),
                config_hash=self._sweep.content_hash(),
                git_commit=git_commit(),
                git_diff=git_diff(),
                library_versions=library_versions(),
            )
        )

    @contextmanager
    def heartbeats(self) -> Iterator[None]:
        """Give heartbeats during a block, from a thread.

        No process owns the run, because workers come and go: without heartbeats, other machines
        would count it as killed.
        """
        over = threading.Event()

        def beat() -> None:
            while not over.wait(self._context.waits.heartbeat_seconds):
                try:
                    run_id, store = self._study.parent_run_id, self._context.store
                    run = None if run_id is None else store.runs.find(run_id)
                    if run is not None and run.status != RunStatus.FINISHED:
                        _give_heartbeat(store, run)
                except Exception as error:  # the worker reports an unreachable database itself
                    log.debug("the sweep has no heartbeat: %s", error)

        thread = threading.Thread(target=beat, name="sweep heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(_LAST_HEARTBEAT_SECONDS)

    def end(self) -> None:
        """Finish the run, once however many workers see the sweep end."""
        with self._study.alone() as study:
            run_id = study.parent_run_id
            if run_id is None:
                return
            runs = self._context.store.runs
            run = runs.get(run_id)
            if run.status == RunStatus.FINISHED:
                return
            runs.end(
                AttemptEnd(
                    run_id=run_id,
                    attempt=run.attempts[-1].attempt,
                    status=RunStatus.FINISHED,
                    end_steps=None,
                    reason=None,
                )
            )
        if run.mlflow_run_id is None:
            return
        trials = load_trials(self._name, self._context.settings.database_url)
        best = best_of(trials)
        score = None if best is None else best.value
        try:
            end_sweep_run(self._context.tracking, run.mlflow_run_id, len(trials), score)
        except RegistryError as error:
            log.warning("MLflow still shows the sweep as running: %s", error)


def _give_heartbeat(store: ExperimentStore, run: Run) -> Run:
    """Give a run a heartbeat; where it had none for long, take it over as a new attempt."""
    if run.status == RunStatus.RUNNING and run_is_alive(run):
        last = run.attempts[-1].attempt
        store.runs.write([Heartbeat(run_id=run.id, attempt=last, total_steps=0)])
        return run
    try:
        return store.runs.resume(run.id, start_steps=0)
    except RunIsBusy:  # another worker was faster
        return run
