"""The MLflow writer on a real MLflow (SQLite file), and once on a real `mlflow server`."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
import sqlalchemy as sa
from mlflow.tracking import MlflowClient

from mario.jobs.context import JobContext, JobSettings
from mario.jobs.store_maintenance import check
from mario.registry.registry import ModelRegistry
from mario.store.engine import writing
from mario.store.records import AttemptEnd, Run, utc_now
from mario.store.store import ExperimentStore
from mario.store.tables import RunAttemptRow
from mario.tracking.mlflow import MlflowSink, open_writer
from mario.tracking.mlflow_client import MlflowTracking, tracking_client
from mario.tracking.mlflow_writer import TrackingWriter, mark_ended
from tests.support.mlflow_server import MlflowServer
from tests.support.onnx_networks import write_test_artefact
from tests.support.processes import free_port
from tests.support.small_disk import can_mount, small_disk
from tests.support.store_rows import MODEL, new_run, verdict


@pytest.fixture
def tracking_uri(tmp_path: Path, empty_mlflow: Path) -> str:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def _writer(tracking_uri: str, tmp_path: Path, run_id: str = "run-1", **more: object):
    return TrackingWriter(
        MlflowTracking(tracking_uri, tmp_path / "artifacts"),
        tmp_path / run_id,
        run_id=run_id,
        experiment="mario-1-1",
        run_name="demo",
        flush_seconds=0.05,
        **more,  # type: ignore[arg-type]
    )


def _history(uri: str, run: str, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in tracking_client(uri).get_metric_history(run, name)]


def test_a_run_in_mlflow_from_start_to_end(tracking_uri: str, tmp_path: Path) -> None:
    told: list[str] = []
    report_file = tmp_path / "summary.html"
    report_file.write_text("<html></html>")
    writer = _writer(tracking_uri, tmp_path, on_run=told.append)
    writer.parameters({"ppo.gamma": 0.95, "long": "x" * 7_000})
    for step in range(1500):
        writer.metrics(step, {"return": step * 0.5, "kl": math.nan if step == 3 else 0.1})
    writer.tags({"mario.health": "warning"})
    writer.dataset("level 1-1", "gym-super-mario-bros", {"levels": ["1-1"]})
    writer.file(report_file)
    writer.file(tmp_path / "not there")
    writer.end("collapsed")
    assert writer.flush(60)
    assert writer.report().refused == 1
    writer.close()
    (run_id,) = told
    client = tracking_client(tracking_uri)
    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["mario.status"] == "collapsed"
    assert run.data.tags["mario.health"] == "warning"
    assert run.data.tags["mario.run_id"] == "run-1"
    assert run.data.params["ppo.gamma"] == "0.95"
    assert _history(tracking_uri, run_id, "return") == [(s, s * 0.5) for s in range(1500)]
    assert math.isnan(dict(_history(tracking_uri, run_id, "kl"))[3])
    assert [item.path for item in client.list_artifacts(run_id)] == ["summary.html"]
    assert run.inputs.dataset_inputs[0].dataset.name == "level 1-1"


def test_a_resumed_run_is_the_same_run(tracking_uri: str, tmp_path: Path) -> None:
    with closing(_writer(tracking_uri, tmp_path)) as writer:
        writer.parameters({"lr": 1})
        writer.metrics(1, {"return": 1.0}, unix_seconds=1.0)
        writer.end("interrupted")
        assert writer.flush(60)
        first = writer.mlflow_run_id
    assert first is not None
    client = tracking_client(tracking_uri)
    assert client.get_run(first).info.status == "KILLED"
    with closing(_writer(tracking_uri, tmp_path)) as writer:
        writer.parameters({"lr": 2})  # MLflow allows no change of a parameter
        writer.metrics(1, {"return": 1.0}, unix_seconds=1.0)
        writer.metrics(2, {"return": 2.0}, unix_seconds=2.0)
        assert writer.flush(60)
        assert writer.mlflow_run_id == first
        assert client.get_run(first).info.status == "RUNNING"
        writer.end("finished")
        assert writer.flush(60)
        assert writer.report().refused == 0
    run = client.get_run(first)
    assert (run.info.status, run.data.params["lr"]) == ("FINISHED", "1")
    assert run.data.tags["changed.lr"] == "2"
    assert _history(tracking_uri, first, "return") == [(1, 1.0), (2, 2.0)]
    monday = datetime(2026, 11, 23, 10, 15, tzinfo=UTC)
    mark_ended(MlflowTracking(tracking_uri), first, "killed", monday)
    info = client.get_run(first).info
    assert (info.status, info.end_time) == ("KILLED", milliseconds(monday))


def test_a_policy_is_logged_once_even_if_delivered_again(tracking_uri: str, tmp_path: Path) -> None:
    artefact = write_test_artefact(tmp_path / "policy", seed=1)
    for _ in range(2):
        with closing(_writer(tracking_uri, tmp_path)) as writer:
            writer.policy(artefact)
            assert writer.flush(60)
            run_id = writer.mlflow_run_id
    assert run_id is not None
    client = tracking_client(tracking_uri)
    run = client.get_run(run_id)
    (output,) = run.outputs.model_outputs
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert (model.model_id, str(model.status)) == (output.model_id, "READY")
    assert model.tags["mario.digest"] == run.data.tags["mario.digest"] == artefact.digest
    # A delivery that was killed after it created the model continues with that model.
    half = write_test_artefact(tmp_path / "half", seed=2)
    client.create_logged_model(
        run.info.experiment_id, name=model.name, source_run_id=run_id,
        tags={"mario.digest": half.digest},
    )  # fmt: skip
    # A folder with another policy by now is refused and does not delay the rest.
    gone = write_test_artefact(tmp_path / "gone", seed=3)
    shutil.rmtree(gone.folder)
    write_test_artefact(gone.folder, seed=4)
    with closing(_writer(tracking_uri, tmp_path)) as writer:
        writer.policy(half)
        writer.policy(gone)
        writer.tags({"after": "it"})
        assert writer.flush(60)
        assert writer.report().refused == 1
    models = client.search_logged_models([run.info.experiment_id])
    assert {one.tags["mario.digest"] for one in models} == {artefact.digest, half.digest}
    assert {str(one.status) for one in models} == {"READY"}
    run = client.get_run(run_id)
    assert {one.model_id for one in run.outputs.model_outputs} == {one.model_id for one in models}
    assert run.data.tags["after"] == "it"


@pytest.fixture
def server(tmp_path: Path, empty_mlflow: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path / "server")
    shutil.copy(empty_mlflow, server.folder / "mlflow.db")
    server.start()
    yield server
    server.kill()


def test_the_journal_of_an_outage_is_replayed(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run ended while MLflow was unreachable; `mario store check --replay` delivers the end."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = JobContext(
        JobSettings(tmp_path, f"sqlite:///{tmp_path}/mario.db", f"http://127.0.0.1:{free_port()}")
    )
    store = away.store
    run = store.runs.start(new_run())
    folder = away.settings.run_dir(run.id)
    writer = open_writer(run, folder, away.tracking, lambda: store.runs)
    writer.metrics(1, {"return": 1.0})
    writer.end("finished")
    ended = datetime.now(UTC)
    assert writer.close(0.5).pending
    store.runs.end(AttemptEnd(run_id=run.id, attempt=1, status="finished", end_steps=1))
    sound, text = check(away)
    assert sound
    assert "not delivered yet" in text
    back = JobContext(JobSettings(away.settings.runs_dir, away.settings.database_url, tracking_uri))
    assert "not delivered yet" not in check(back, replay=True)[1]
    mlflow_run = store.runs.get(run.id).mlflow_run_id
    assert mlflow_run is not None
    info = tracking_client(tracking_uri).get_run(mlflow_run).info
    assert info.status == "FINISHED"
    assert info.start_time == milliseconds(run.started_at), "not when MLflow heard of it"
    assert info.start_time <= info.end_time <= milliseconds(ended)
    assert _history(tracking_uri, mlflow_run, "return") == [(1, 1.0)]


def milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def killed_days_ago(store: ExperimentStore, mlflow_run_id: str, days: int) -> Run:
    """A run of a dead process with its last heartbeat some days ago."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    run = store.runs.start(new_run(mlflow_run_id=mlflow_run_id))
    with writing(store.engine) as connection:
        connection.execute(
            sa.update(RunAttemptRow)
            .where(RunAttemptRow.run_id == run.id)
            .values(pid=gone.pid, heartbeat_at=utc_now() - timedelta(days=days))
        )
    return store.runs.get(run.id)


def test_a_killed_run_ended_with_its_last_heartbeat(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when it was checked; a second check writes nothing."""
    with closing(_writer(tracking_uri, tmp_path)) as writer:
        assert writer.flush(60)
        mlflow_run = writer.mlflow_run_id
    assert mlflow_run is not None
    context = JobContext(JobSettings(tmp_path, f"sqlite:///{tmp_path}/mario.db", tracking_uri))
    client = tracking_client(tracking_uri)
    written: list[str] = []
    original = type(client).set_terminated

    def spy(self: object, run_id: str, **more: object) -> None:
        written.append(run_id)
        original(self, run_id, **more)

    monkeypatch.setattr(type(client), "set_terminated", spy)
    store = context.store
    run = killed_days_ago(store, mlflow_run, 2)
    for _ in range(2):
        assert check(context)[0]
    assert store.runs.get(run.id).status == "killed"
    shown = client.get_run(mlflow_run)
    assert (shown.info.status, shown.data.tags["mario.status"]) == ("KILLED", "killed")
    assert shown.info.end_time == milliseconds(run.attempts[0].heartbeat_at)
    assert written == [mlflow_run]


def test_an_unreachable_mlflow_is_asked_once_for_all_killed_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = f"http://127.0.0.1:{free_port()}"
    asked: list[str] = []

    class Counted(MlflowTracking):
        @property
        def client(self) -> MlflowClient:
            asked.append(self.uri)
            return super().client

    class CountingContext(JobContext):
        @property
        def tracking(self) -> MlflowTracking:
            return Counted(away)

    context = CountingContext(JobSettings(tmp_path, f"sqlite:///{tmp_path}/mario.db", away))
    store = context.store
    for number in range(3):
        killed_days_ago(store, f"{number:032x}", 1)
    assert check(context)[0]
    assert len(asked) == 1
    (said,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "may still show killed runs as running" in said


@pytest.mark.skipif(
    not can_mount(), reason="filling a disk for real needs to mount one: run as root"
)
def test_a_checkpoint_waits_for_numbers_that_a_full_disk_keeps_in_memory(tmp_path: Path) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    with (
        small_disk(tmp_path / "runs", megabytes=1) as disk,
        closing(_writer(away, disk.path)) as writer,
    ):
        sink = MlflowSink(writer)
        assert sink.flush()
        disk.fill()
        writer.metrics(128, {f"health/number_{i}": 1.0 for i in range(1_000)})
        # If the run were killed now and resumed from a checkpoint, these would be lost.
        assert not sink.flush()
        disk.free()
        assert sink.flush()


@pytest.mark.slow
@pytest.mark.timeout(900)  # three starts of a server that takes 7 s alone and minutes in company
def test_a_real_server_is_killed_and_comes_back(server: MlflowServer, tmp_path: Path) -> None:
    """Metrics and the end are reported during the outage; registration and promotion follow."""
    with ExperimentStore.open(f"sqlite:///{tmp_path}/mario.db") as store:
        run = store.runs.start(new_run())

        def note(mlflow_run_id: str) -> None:
            store.runs.set_mlflow_run(run.id, mlflow_run_id)

        writer = _writer(server.uri, tmp_path, run.id, on_run=note)
        writer.metrics(1, {"return": 1.0})
        assert writer.flush(60)
        server.kill()
        for step in range(2, 1002):
            writer.metrics(step, {"return": float(step)})
        writer.end("finished")
        assert not writer.flush(1.0)
        server.start()
        assert writer.flush(120)
        assert not writer.close().pending
        mlflow_run = store.runs.get(run.id).mlflow_run_id
        assert mlflow_run is not None
        history = _history(server.uri, mlflow_run, "return")
        assert history == [(step, float(step)) for step in range(1, 1002)]
        assert tracking_client(server.uri).get_run(mlflow_run).info.status == "FINISHED"

        registry = ModelRegistry(server.uri, store)
        artefact = write_test_artefact(tmp_path / "artefact", seed=1)
        row = registry.register(MODEL, artefact.folder, run_id=run.id)
        assert (row.version, row.mlflow_run_id) == (1, mlflow_run)
        verdict_id = verdict(store, (1, row.digest), (None, "random:80:4"))
        registry.promote(MODEL, 1, verdict_id=verdict_id, promoted_by="test")
        resolved = registry.resolve(MODEL)
        assert registry.download(resolved, tmp_path / "policy").digest == artefact.digest
        assert registry.mlflow.aliases(MODEL) == {"champion": 1}
        # During an outage the ledger changes; the alias follows when the server is back.
        second = write_test_artefact(tmp_path / "artefact-2", seed=2)
        row = registry.register(MODEL, second.folder)
        verdict_id = verdict(store, (2, row.digest), (1, artefact.digest))
        store.ledger.promote(MODEL, 2, verdict_id=verdict_id, promoted_by="test")
        server.kill()
        promotion = registry.promote(MODEL, 2, verdict_id=verdict_id, promoted_by="test")
        assert promotion.version == 2
        server.start()
        assert registry.mlflow.aliases(MODEL) == {"champion": 1}
        (repair,) = registry.reconcile(MODEL)
        assert "from v1 to v2" in repair.what
        assert registry.mlflow.aliases(MODEL) == {"champion": 2}


@pytest.mark.slow
def test_mlflow_models_serve_answers(tracking_uri: str, tmp_path: Path) -> None:
    import numpy as np

    from mario.policy.onnx import OnnxPolicy
    from tests.support.onnx_networks import random_observations

    with ExperimentStore.open(f"sqlite:///{tmp_path}/mario.db") as store:
        registry = ModelRegistry(tracking_uri, store, tmp_path / "artifacts")
        artefact = write_test_artefact(tmp_path / "artefact", seed=1)
        registry.register(MODEL, artefact.folder)
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{MODEL}/1",
        "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": tracking_uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # It finds uvicorn on the PATH.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path
        )
    try:
        observations = random_observations(2)
        deadline = time.monotonic() + 120
        while True:
            try:
                answer = requests.post(
                    f"http://127.0.0.1:{port}/invocations",
                    json={"inputs": observations.tolist()},
                    timeout=20,
                )
                break
            except requests.ConnectionError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise AssertionError((tmp_path / "serve.log").read_text()[-2000:]) from None
                time.sleep(0.3)
        assert answer.status_code == 200, answer.text
        logits, _ = OnnxPolicy(artefact).infer(observations)
        np.testing.assert_allclose(answer.json()["predictions"]["logits"], logits, atol=1e-4)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
