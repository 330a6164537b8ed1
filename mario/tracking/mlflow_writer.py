"""Write metrics, tags and files of a run to MLflow through a journal, in batches, from a thread.

Every call is idempotent, so that a batch may be sent twice: the MLflow run is searched by the tag
``mario.run_id`` before it is created, metrics carry time and step, tags and files overwrite.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mario.config.run_states import RunStatus
from mario.errors import ArtefactError, MarioError, RegistryError, RegistryUnavailableError
from mario.journal.format import NO_PATIENCE, Patience, Record
from mario.journal.writer import (
    DeliveryRefusedError,
    DeliveryUnavailableError,
    JournaledWriter,
    WriterReport,
)
from mario.policy.artefact import Artefact
from mario.tracking.mlflow_client import (
    TAG_DIGEST,
    TAG_POLICY,
    TAG_RUN,
    TAG_STATUS,
    MlflowTracking,
    is_unreachable,
)
from mario.tracking.mlflow_policy import log_policy

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

_log = logging.getLogger(__name__)

JOURNAL_FOLDER = "journal-mlflow"
# What one `log_batch` may hold: https://mlflow.org/docs/latest/rest-api.html#log-batch
_METRICS_A_BATCH, _PARAMETERS_A_BATCH, _TAGS_A_BATCH = 900, 90, 90
_PARAMETER_CHARACTERS, _TAG_CHARACTERS = 6_000, 5_000
_HOPELESS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST"})

#: The status in MLflow's list of runs; the tag ``mario.status`` has the exact status.
MLFLOW_STATUS: Mapping[str, str] = {
    RunStatus.RUNNING: "RUNNING",
    RunStatus.FINISHED: "FINISHED",
    RunStatus.INTERRUPTED: "KILLED",
    RunStatus.KILLED: "KILLED",
    RunStatus.COLLAPSED: "FAILED",
    RunStatus.DIVERGED: "FAILED",
    RunStatus.FAILED: "FAILED",
}


class TrackingWriter:
    """Reports one training run to MLflow; no call waits for MLflow.

    Args:
        tracking: the MLflow server, which may be unreachable.
        folder: the run's folder; the journal is ``folder/journal-mlflow``.
        run_id: the run's id in the store; a resumed run continues the same MLflow run.
        experiment: MLflow experiment; created if missing.
        run_name: the name of the MLflow run.
        started_at: when the run began; None is the time of the first delivery.
        on_run: called once with the MLflow run's id, from the writer's thread.
        replaying: only deliver the journal of an earlier process; the run does not continue.
        on_failure: called, from the writer's thread, for each batch that MLflow did not accept.
        flush_seconds: how long numbers may wait to become a batch.
        patience: how long to wait for another process that holds the journal.

    Raises:
        StoreError: the journal cannot be opened.
    """

    def __init__(
        self,
        tracking: MlflowTracking,
        folder: Path | str,
        *,
        run_id: str,
        experiment: str,
        run_name: str,
        started_at: datetime | None = None,
        on_run: Callable[[str], None] | None = None,
        replaying: bool = False,
        on_failure: Callable[[], None] | None = None,
        flush_seconds: float = 2.0,
        patience: Patience = NO_PATIENCE,
    ) -> None:
        self._tracking = tracking
        self._run_id = run_id
        self._experiment = experiment
        self._run_name = run_name
        self._started_at = started_at
        self._on_run = on_run
        self._on_failure = on_failure
        self._mlflow_run_id: str | None = None
        self._writer = JournaledWriter(
            Path(folder) / JOURNAL_FOLDER,
            self._deliver,
            name="mlflow",
            flush_seconds=flush_seconds,
            patience=patience,
        )
        if not replaying:
            self._writer.put(
                [{"tag": {TAG_STATUS: RunStatus.RUNNING}, "status": RunStatus.RUNNING}]
            )

    @property
    def mlflow_run_id(self) -> str | None:
        """The MLflow run's id; None before the first delivery."""
        return self._mlflow_run_id

    def metrics(
        self, step: int, values: Mapping[str, float], *, unix_seconds: float | None = None
    ) -> None:
        """Report numbers at a step (agent steps of the run); non-finite ones become NaN."""
        at = time.time() if unix_seconds is None else unix_seconds
        record = {
            "metric": {
                name: float(value) if math.isfinite(value) else None
                for name, value in values.items()
            },
            "step": int(step),
            "at": int(at * 1000),
        }
        self._writer.put([record])

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Report parameters; MLflow allows no change, so a changed parameter becomes a tag."""
        self._writer.put([{"param": {name: str(value) for name, value in values.items()}}])

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags, such as the state of the collapse detector."""
        self._writer.put([{"tag": {name: str(value) for name, value in values.items()}}])

    def file(self, path: Path | str) -> None:
        """Upload a file or folder, which must not move before it is delivered."""
        self._writer.put([{"file": str(Path(path).resolve()), "folder": ""}])

    def dataset(
        self,
        name: str,
        source: str,
        description: Mapping[str, Any],
        *,
        context: str = "training",
    ) -> None:
        """Report the data of training or selection, as an MLflow dataset input."""
        self._writer.put(
            [
                {
                    "dataset": name,
                    "source": source,
                    "profile": dict(description),
                    "context": context,
                }
            ]
        )

    def policy(self, artefact: Artefact) -> None:
        """Report the policy of the run: as an MLflow model, with its digest as a tag.

        The artefact's folder must not move before it is delivered.
        """
        folder = str(artefact.folder.resolve())
        self.tags({TAG_DIGEST: artefact.digest, TAG_POLICY: folder})
        self._writer.put([{"policy": folder, "digest": artefact.digest}])

    def end(self, status: RunStatus) -> None:
        """Report the status with which the run ends now, whenever it is delivered."""
        at = _unix_milliseconds(datetime.now(UTC))
        self._writer.put([{"tag": {TAG_STATUS: status}, "status": status, "at": at}])

    def sync(self) -> bool:
        """Make the reports so far durable; call it before a checkpoint that depends on them.

        Returns:
            Whether they are durable; False if neither disk nor MLflow accepts them now. Reports
            that are lost for good do not count.
        """
        return self._writer.sync()

    def flush(self, timeout_seconds: float = 10.0) -> bool:
        """Wait until MLflow has all reports so far; returns False if that takes longer."""
        return self._writer.flush(timeout_seconds)

    def report(self) -> WriterReport:
        """Return the counts so far."""
        return self._writer.report()

    def close(self, timeout_seconds: float = 8.0) -> WriterReport:
        """Deliver what can be delivered in time; the rest stays for the next start."""
        return self._writer.close(timeout_seconds)

    # -- in the writer's thread -------------------------------------------------------------

    def _deliver(self, records: Sequence[Record]) -> None:
        import requests
        import sqlalchemy as sa
        from mlflow.exceptions import MlflowException

        try:
            client = self._tracking.client
            self._send(client, self._ensure_run(client), records)
        except DeliveryRefusedError:
            self._note_failure()
            raise
        except MlflowException as error:
            self._note_failure()
            raise _as_delivery_error(error) from error
        except (
            MarioError,
            OSError,
            requests.RequestException,
            sa.exc.SQLAlchemyError,
        ) as error:
            self._note_failure()
            raise DeliveryUnavailableError(f"MLflow at {self._tracking.uri}: {error}") from error

    def _note_failure(self) -> None:
        if self._on_failure is not None:
            self._on_failure()

    def _ensure_run(self, client: MlflowClient) -> str:
        if self._mlflow_run_id is not None:
            return self._mlflow_run_id
        experiment = self._tracking.experiment(self._experiment)
        found = client.search_runs(
            [experiment], f"tags.`{TAG_RUN}` = '{self._run_id}'", max_results=1
        )
        if found:
            mlflow_run_id = str(found[0].info.run_id)
        else:
            began = self._started_at
            run = client.create_run(
                experiment,
                start_time=None if began is None else _unix_milliseconds(began),
                run_name=self._run_name,
                tags={TAG_RUN: self._run_id},
            )
            mlflow_run_id = str(run.info.run_id)
        if self._on_run is not None:
            try:
                self._on_run(mlflow_run_id)
            except MarioError as error:  # repeated at the next delivery
                raise DeliveryUnavailableError(str(error)) from error
        self._mlflow_run_id = mlflow_run_id
        return mlflow_run_id

    def _send(self, client: MlflowClient, run: str, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [
            Metric(name, math.nan if value is None else value, record["at"], record["step"])
            for record in records
            for name, value in record.get("metric", {}).items()
        ]
        for start in range(0, len(metrics), _METRICS_A_BATCH):
            client.log_batch(run, metrics=metrics[start : start + _METRICS_A_BATCH])
        tags: dict[str, str] = {}
        parameters: dict[str, str] = {}
        for record in records:
            tags.update(record.get("tag", {}))
            parameters.update(record.get("param", {}))
        if parameters:
            known = client.get_run(run).data.params
            for name, value in parameters.items():
                if name in known and known[name] != value[:_PARAMETER_CHARACTERS]:
                    tags[f"changed.{name}"] = value
            new = [
                Param(name, value[:_PARAMETER_CHARACTERS])
                for name, value in parameters.items()
                if name not in known
            ]
            for start in range(0, len(new), _PARAMETERS_A_BATCH):
                client.log_batch(run, params=new[start : start + _PARAMETERS_A_BATCH])
        entities = [RunTag(name, value[:_TAG_CHARACTERS]) for name, value in tags.items()]
        for start in range(0, len(entities), _TAGS_A_BATCH):
            client.log_batch(run, tags=entities[start : start + _TAGS_A_BATCH])
        for record in records:
            self._send_other(client, run, record)

    def _send_other(self, client: MlflowClient, run: str, record: Record) -> None:
        if "file" in record:
            path = Path(record["file"])
            if path.is_dir():
                client.log_artifacts(run, str(path), record["folder"] or None)
            elif path.is_file():
                client.log_artifact(run, str(path), record["folder"] or None)
            else:
                raise DeliveryRefusedError(f"{path} is missing; it cannot be uploaded")
        if "dataset" in record:
            client.log_inputs(run, [_dataset_input(record)])
        if "policy" in record:
            try:
                log_policy(client, run, Path(record["policy"]), record["digest"])
            except (ArtefactError, RegistryError) as error:  # a retry cannot succeed
                raise DeliveryRefusedError(str(error)) from error
        if "status" in record:
            status = MLFLOW_STATUS.get(record["status"], "FAILED")
            if status == "RUNNING":
                client.update_run(run, status="RUNNING")
            else:
                # A journal of an earlier version has no time: MLflow takes the current one.
                client.set_terminated(run, status=status, end_time=record.get("at"))


def _dataset_input(record: Record) -> Any:
    import hashlib
    import json

    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = json.dumps(record["profile"], sort_keys=True)
    digest = hashlib.sha256(f"{record['source']}\0{profile}".encode()).hexdigest()[:32]
    dataset = Dataset(
        name=record["dataset"],
        digest=digest,
        source_type="mario",
        source=json.dumps({"source": record["source"]}),
        profile=profile,
    )
    return DatasetInput(
        dataset, [InputTag("mlflow.data.context", record.get("context", "training"))]
    )


def _as_delivery_error(error: MlflowException) -> Exception:
    text = str(error).splitlines()[0][:300]
    if error.error_code in _HOPELESS:
        return DeliveryRefusedError(text)
    return DeliveryUnavailableError(text)


def _unix_milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def mark_ended(
    tracking: MlflowTracking, mlflow_run_id: str, status: str, ended_at: datetime | None
) -> None:
    """Set the end of an MLflow run as the store has it, for a process that was killed.

    Nothing is written if MLflow has it already.

    Raises:
        RegistryUnavailableError: MLflow is unreachable.
        RegistryError: it does not know the run.
    """
    from mlflow.exceptions import MlflowException

    shown = MLFLOW_STATUS.get(status, "FAILED")
    end = None if ended_at is None else _unix_milliseconds(ended_at)
    try:
        client = tracking.client
    except RegistryError as error:
        raise RegistryUnavailableError(str(error)) from error
    try:
        run = client.get_run(mlflow_run_id)
        known = (run.data.tags.get(TAG_STATUS), run.info.status)
        if known == (status, shown) and end in (None, run.info.end_time):
            return
        client.set_tag(mlflow_run_id, TAG_STATUS, status)
        client.set_terminated(mlflow_run_id, status=shown, end_time=end)
    except MlflowException as error:
        kind = RegistryUnavailableError if is_unreachable(error) else RegistryError
        raise kind(
            f"cannot mark run {mlflow_run_id} as {status} at {tracking.uri} "
            f"({str(error).splitlines()[0][:200]}); expected an MLflow that answers"
        ) from error
