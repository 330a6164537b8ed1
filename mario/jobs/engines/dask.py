"""The Dask engine: plays units on a cluster; a task is some units, the policy is sent as bytes.

Workers know no database: the process that started the evaluation stores the records. If a worker is
killed, Dask gives its tasks to another; a unit that is played twice gives the same record, which is
yielded once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mario.config.evaluation import PROTOCOL, EvaluationConfig
from mario.config.game import ConsoleName
from mario.errors import ArtefactError, EvaluationError, MarioError
from mario.evaluation.protocol import play_units
from mario.evaluation.records import EpisodeRecord
from mario.game.smb.actions import Action
from mario.jobs.policies import LoadedPolicy
from mario.policy.artefact import GOLDEN_FILE, MANIFEST_FILE, ONNX_FILE, load_artefact
from mario.policy.onnx import OnnxPolicy
from mario.policy.policy import Policy, RandomPolicy

#: How long a scheduler, or its first worker, may take to answer.
CONNECT_SECONDS = 60.0
#: A task that ended more workers than this is given to no other.
_ALLOWED_FAILURES = 3
#: Tasks for each worker if there are enough units, so that the last tasks end at about one time.
_TASKS_A_WORKER = 3
#: Policies that a worker keeps open: challenger, champion and their predecessors.
_OPEN_POLICIES = 4


@dataclass(frozen=True)
class PolicyPayload:
    """A policy as it is sent to a worker.

    Attributes:
        digest: its identity; a worker refuses files with another digest.
        files: content of the artefact's files by name; empty for the random policy.
        actions: actions of the random policy.
        frame_skip: frame skip of the random policy.
        check_golden: compare the worker's answers with the recorded ones before playing.
    """

    digest: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    actions: tuple[Action, ...] = ()
    frame_skip: int = 4
    check_golden: bool = False


def payload_of(loaded: LoadedPolicy) -> PolicyPayload:
    """Pack a policy to be sent to a worker.

    Raises:
        EvaluationError: it is neither an artefact nor the random policy.
        ArtefactError: the artefact's folder was deleted or changed since it was loaded.
    """
    if isinstance(loaded.policy, RandomPolicy):
        return PolicyPayload(
            loaded.digest, actions=loaded.policy.actions, frame_skip=loaded.policy.frame_skip
        )
    artefact = loaded.artefact
    if artefact is None or not isinstance(loaded.policy, OnnxPolicy):
        raise EvaluationError(
            f"got {loaded.label} ({type(loaded.policy).__name__}), which exists in this process "
            "only; expected an artefact or the random policy; export it first, or use the engine "
            "local"
        )
    files = {ONNX_FILE: artefact.onnx}
    names = (MANIFEST_FILE, *((GOLDEN_FILE,) if artefact.golden is not None else ()))
    try:
        for name in names:
            files[name] = (artefact.folder / name).read_bytes()
    except OSError as error:
        raise ArtefactError(
            f"{artefact.folder}: {error.filename} cannot be read any more ({error.strerror}); "
            "expected the folder the policy was loaded from; load it again"
        ) from error
    if hashlib.sha256(files[MANIFEST_FILE]).hexdigest() != loaded.digest:
        raise ArtefactError(
            f"{artefact.folder}: {MANIFEST_FILE} is another one than when the policy was loaded; "
            "expected it unchanged; load the policy again"
        )
    return PolicyPayload(loaded.digest, files, check_golden=_answers_as_recorded(loaded.policy))


def _answers_as_recorded(policy: OnnxPolicy) -> bool:
    """Whether the answers here are as recorded; if not, the gate's guard reports it."""
    try:
        policy.check_golden()
    except ArtefactError:
        return False
    return True


# -- on the worker ----------------------------------------------------------------------------

_open_policies: OrderedDict[tuple[str, int], Policy] = OrderedDict()
_opening = threading.Lock()


def _policy_from(payload: PolicyPayload) -> Policy:
    """Open a policy, or return the one that this thread has open."""
    key = (payload.digest, threading.get_ident())
    with _opening:
        policy = _open_policies.get(key)
        if policy is None:
            policy = _open(payload)
            while len(_open_policies) >= _OPEN_POLICIES:
                _open_policies.popitem(last=False)
        _open_policies[key] = policy
        _open_policies.move_to_end(key)
    return policy


def _open(payload: PolicyPayload) -> Policy:
    if not payload.files:
        return RandomPolicy(payload.actions, payload.frame_skip)
    with tempfile.TemporaryDirectory(prefix="mario-policy-") as folder:
        for name, content in payload.files.items():
            (Path(folder) / name).write_bytes(content)
        artefact = load_artefact(folder)
    if artefact.digest != payload.digest:
        raise ArtefactError(
            f"got a policy with digest {artefact.digest[:12]} for {payload.digest[:12]}; expected "
            "the very files that were sent; start the evaluation again"
        )
    policy = OnnxPolicy(artefact, threads=1)
    if payload.check_golden:
        policy.check_golden()
    return policy


def play_on_worker(
    payload: PolicyPayload,
    units: Sequence[tuple[str, int]],
    environments: int,
    console: ConsoleName,
    protocol: str,
) -> list[dict[str, Any]]:
    """Play a task's units on a worker.

    Returns:
        The records as `EpisodeRecord.to_dict` writes them, in the order in which they ended.

    Raises:
        EvaluationError: this worker plays another protocol, or a unit is impossible.
        ArtefactError: the policy was damaged on the way, or its answers differ here.
    """
    if protocol != PROTOCOL:
        raise EvaluationError(
            f"got units of {protocol} on a worker that plays {PROTOCOL}; expected the same; "
            "install the same version of mario-mlops on the workers"
        )
    policy = _policy_from(payload)
    return [
        record.to_dict()
        for record in play_units(
            policy,
            units,
            policy_digest=payload.digest,
            environments=environments,
            console=console,
            threads=1,  # a worker is one of many on its machine
        )
    ]


def same(payload: PolicyPayload) -> PolicyPayload:
    """Return the policy: as the result of a task, workers copy it from workers."""
    return payload


# -- where the evaluation was launched ----------------------------------------------------------


def shares(
    units: Sequence[tuple[str, int]], workers: int, environments: int
) -> list[tuple[tuple[str, int], ...]]:
    """Divide units into tasks: some for each worker, none larger than four batches.

    Args:
        units: (level, seed) each.
        workers: number of workers, ≥ 1.
        environments: units that a worker plays at a time, ≥ 1.

    Example:
        >>> shares([("1-1", seed) for seed in range(5)], workers=1, environments=8)[0]
        (('1-1', 0), ('1-1', 1))
    """
    wanted = -(-len(units) // (workers * _TASKS_A_WORKER))
    size = max(1, min(4 * environments, wanted))
    return [tuple(units[start : start + size]) for start in range(0, len(units), size)]


def _distributed() -> Any:
    """Import Dask's distributed scheduler; only this engine needs it installed."""
    try:
        import distributed
    except ImportError as error:
        raise EvaluationError(
            "got evaluation.engine dask without the package distributed; expected an installation "
            "with it: pip install 'mario-mlops[flows]', or the engine local"
        ) from error
    return distributed


class DaskEngine:
    """Plays units on a Dask cluster: one on this machine, a running one, or one handed in.

    Example:
        >>> with DaskEngine(workers=2) as engine:  # doctest: +SKIP
        ...     evaluate_stored(loaded, units, key, store, engine=engine)
    """

    def __init__(
        self,
        *,
        workers: int = 0,
        scheduler: str | None = None,
        client: Any | None = None,
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        """Prepare; nothing is started or connected before the first units.

        Args:
            workers: processes of a cluster on this machine; 0 = one for each core.
            scheduler: address of a running scheduler, such as ``tcp://10.0.0.5:8786``.
            client: a `distributed.Client`, which stays open; `workers` and `scheduler` are unused.
            connect_seconds: how long a scheduler, or its first worker, may take to answer.

        Raises:
            EvaluationError: Dask is not installed.
        """
        self._dask = _distributed()
        self._wanted = workers or len(os.sched_getaffinity(0))
        self._scheduler = scheduler
        self._client = client
        self._connect_seconds = connect_seconds
        self._own: list[Any] = []

    def __enter__(self) -> DaskEngine:
        """Return the engine; nothing is started yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what the engine started."""
        self.close()

    def close(self) -> None:
        """Stop the cluster that the engine started; one that ran before continues."""
        for thing in reversed(self._own):
            thing.close()
        if self._own:
            self._own, self._client = [], None

    def at_once(self, environments: int) -> int:
        """As many units as there are environments on all workers."""
        return environments * self.workers()

    def workers(self) -> int:
        """The number of tasks worked on at a time; before the start, of workers wanted."""
        if self._client is None and self._scheduler is None:
            return self._wanted
        threads: dict[str, int] = self._connected().nthreads()
        return max(1, sum(threads.values()))

    def start(self) -> None:
        """Start the cluster, or connect to the scheduler, before the first units do.

        Raises:
            EvaluationError: the scheduler does not answer, or has no workers.
        """
        self._connected()

    def play(
        self,
        loaded: LoadedPolicy,
        units: Sequence[tuple[str, int]],
        *,
        environments: int,
        console: ConsoleName,
    ) -> Iterator[EpisodeRecord]:
        """Play units; see `mario.jobs.engines.contract.EvaluationEngine`.

        Raises:
            EvaluationError: no cluster answers, a worker has another installation, or a task
                ended several workers.
        """
        if environments < 1:
            raise EvaluationError(
                f"got environments={environments}; expected at least 1; correct the setting"
            )
        if not units:
            return
        client = self._connected()
        payload = client.submit(same, payload_of(loaded), pure=False)
        futures = [
            client.submit(
                play_on_worker, payload, share, environments, console, PROTOCOL, pure=False
            )
            for share in shares(units, self.workers(), environments)
        ]
        try:
            for future in self._dask.as_completed(futures, loop=client.loop):
                for record in self._result(future):
                    yield EpisodeRecord.from_dict(record)
                future.release()
        finally:
            client.cancel(futures)

    def _result(self, future: Any) -> list[dict[str, Any]]:
        try:
            records: list[dict[str, Any]] = future.result()
        except MarioError:
            raise
        except self._dask.KilledWorker as error:
            raise EvaluationError(
                f"a task ended {_ALLOWED_FAILURES + 1} workers of the Dask cluster ({error}); "
                "expected workers that live; see their log: too little memory is the usual "
                "cause; repeat the command to play the rest"
            ) from error
        except (self._dask.CancelledError, ImportError, AttributeError, OSError) as error:
            raise EvaluationError(
                f"the Dask cluster failed ({type(error).__name__}: {error}); expected a scheduler "
                "that keeps running and workers with this version of mario-mlops; repeat the "
                "command to play the rest"
            ) from error
        return records

    def _connected(self) -> Any:
        if self._client is None:
            self._client = self._connect()
        return self._client

    def _connect(self) -> Any:
        import dask

        address: Any = self._scheduler
        if address is None:
            # Set before the scheduler is made, which reads it once.
            with dask.config.set({"distributed.scheduler.allowed-failures": _ALLOWED_FAILURES}):
                address = self._dask.LocalCluster(
                    n_workers=self._wanted,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    # A task's exception reaches us anyway; a worker that stops slowly is no news.
                    silence_logs=logging.CRITICAL,
                    # The default limit, memory divided by cores, would pause workers on a machine
                    # that is busy with other work.
                    memory_limit=0,
                )
            self._own.append(address)
        try:
            client = self._dask.Client(address, timeout=self._connect_seconds, set_as_default=False)
            self._own.append(client)
            client.wait_for_workers(1, timeout=self._connect_seconds)
        except (OSError, TimeoutError) as error:
            self.close()
            raise EvaluationError(
                f"no Dask worker answers at {self._scheduler} ({error}); expected a scheduler with "
                "workers; start them with `dask scheduler` and `dask worker ADDRESS`"
            ) from error
        return client


@contextmanager
def open_engine(settings: EvaluationConfig) -> Iterator[DaskEngine]:
    """Open the engine; its cluster starts with the first units and stops with the block.

    Raises:
        EvaluationError: Dask is not installed.
    """
    with DaskEngine(workers=settings.workers, scheduler=settings.scheduler) as engine:
        yield engine
