"""Test flows on a real Prefect server on PostgreSQL, with real workers that the tests kill."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flows.decisions import run_id_for
from mario.jobs.context import JobContext, JobSettings
from mario.jobs.monitor_flows import FlowMonitor
from mario.store.store import ExperimentStore
from mario.telemetry.instruments import InstrumentSet
from mario.telemetry.loop import LoopMetrics
from tests.support.policies import GOOD, STUCK, write_odds_policy
from tests.support.prefect_server import (
    PrefectServer,
    Receiver,
    descendants,
    kill_all,
    prefect_server,
    screenshot,
    versions,
    wait_for_checkpoints,
    weights,
)
from tests.support.processes import free_port
from tests.support.processes import server as http_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

#: Heartbeats come every 30 s; a run without one for so long counts as crashed.
SILENCE_SECONDS = 75
TRAINING = (
    "network.threads=1", "total_steps=1536", "checkpoint.every_steps=256",
    "selection.every_steps=1000000", "evaluation.screening_units=2", "gate.primary=progress",
    "gate.max_units=2",
)  # fmt: skip
PARAMETERS = {"config": "configs/smoke.yaml", "overrides": list(TRAINING), "next_seed": False}
#: So long that training still runs after one or two checkpoints.
LONG = {**PARAMETERS, "overrides": [*TRAINING, "total_steps=8192"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[PrefectServer]:
    folder = tmp_path_factory.mktemp("prefect")
    with prefect_server(
        folder,
        MARIO_SILENCE_SECONDS=str(SILENCE_SECONDS),
        MARIO_WEBHOOK_URL=receiver.url,
        MARIO_GPUS="2",  # so that two pipelines can run at once
    ) as made:
        first = made.mario("flows", "setup") + made.mario("flows", "deploy")
        (folder / "first.txt").write_text(first)
        yield made


@pytest.fixture(scope="module")
def uninterrupted(
    server: PrefectServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """A pipeline run by a process worker without interruption; a web server shows its files."""
    runs, port = tmp_path_factory.mktemp("uninterrupted"), free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1",
               "--directory", str(runs)]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with http_server(command, log=server.folder / "pages.log", ready=url):
        with server.worker(runs, MARIO_RUNS_URL=url):
            flow_run = server.start_run("pipeline/pipeline", LONG)
            state = server.wait(flow_run)
        yield {"flow_run": flow_run, "state": state, "runs": runs}


def test_a_second_setup_and_deploy_change_nothing(server: PrefectServer) -> None:
    first = (server.folder / "first.txt").read_text()
    assert "created   pool       process" in first
    assert "created   deployment nightly/nightly" in first
    before = server.call("POST", "/deployments/filter", {})
    again = server.mario("flows", "setup"), server.mario("flows", "deploy")
    for said in again:
        assert said.startswith("nothing to change"), said
    after = server.call("POST", "/deployments/filter", {})
    updated = {d["name"]: d["updated"] for d in before}
    assert {d["name"]: d["updated"] for d in after} == updated
    # A paused deployment stays paused.
    nightly = next(d for d in after if d["name"] == "nightly")
    server.call("POST", f"/deployments/{nightly['id']}/pause_deployment", {})
    assert server.mario("flows", "deploy", "nightly").startswith("nothing to change")
    assert server.call("GET", f"/deployments/{nightly['id']}")["paused"]
    server.call("POST", f"/deployments/{nightly['id']}/resume_deployment", {})
    assert "nightly at test on process/cpu, 0 3 * * * Europe/Berlin" in server.mario(
        "flows", "status"
    )


def test_schedules_create_runs_in_their_time_zone(server: PrefectServer) -> None:
    deadline = time.monotonic() + 300
    while True:
        found = server.call(
            "POST", "/flow_runs/filter", {"deployments": {"name": {"any_": ["nightly"]}}}
        )
        if found:
            break
        assert time.monotonic() < deadline, server.log()
        time.sleep(1)
    from zoneinfo import ZoneInfo

    starts = [datetime.fromisoformat(run["expected_start_time"]) for run in found]
    assert {start.astimezone(ZoneInfo("Europe/Berlin")).hour for start in starts} == {3}


def test_a_pipeline_completes_and_shows_its_artifacts(
    server: PrefectServer, uninterrupted: dict[str, Any]
) -> None:
    state, flow_run = uninterrupted["state"], uninterrupted["flow_run"]
    assert state["type"] == "COMPLETED", server.log()
    assert state["name"] in ("Kept", "Promoted")
    assert "version 1" in state["message"]
    run = server.run(flow_run)
    assert run["name"] == "pipeline smoke"
    assert run["run_count"] == 1
    if folder := os.environ.get("MARIO_SCREENSHOTS"):
        screenshot(server, flow_run, Path(folder))
    deadline = time.monotonic() + 60  # task runs arrive as events
    wanted = {"prepare smoke", "train smoke", f"register {run_id_for(flow_run)}",
              "screen mario-1-1 v1", "gate mario-1-1 v1", "summary smoke"}  # fmt: skip
    while True:
        tasks = server.call(
            "POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}}
        )
        if wanted <= {t["name"] for t in tasks if t["state"]["type"] == "COMPLETED"}:
            break
        assert time.monotonic() < deadline, [(t["name"], t["state"]["name"]) for t in tasks]
        time.sleep(0.5)
    shown = server.artifacts(flow_run)
    assert shown["training-smoke"]["type"] == "progress"
    assert shown["training-smoke"]["data"] == 100.0
    assert "8,192 of 8,192 steps" in shown["training-smoke"]["description"]
    curve = shown["learning-curve-smoke"]["data"]
    assert "| steps up to | episodes | mean furthest x (px) | cleared |" in curve
    verdict = next(a["data"] for k, a in shown.items() if k.startswith("verdict-"))
    assert "MLflow: run `" in verdict, "there is no MLflow server in this test"
    links = dict(re.findall(r"^- (\w+): \[[^]]+\]\((http://[^)]+)\)$", verdict, re.MULTILINE))
    assert {name: url.rpartition("/")[2] for name, url in links.items()} == {
        "report": "verdict.html", "summary": "summary.html", "video": "median-episode.mp4"
    }  # fmt: skip
    for url in links.values():
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert len(answer.read()) > 1_000, url
    assert f"({links['report']})" in shown["report-mario-1-1"]["data"]
    table = next(json.loads(a["data"]) for k, a in shown.items() if k.startswith("numbers-"))
    assert {"what", "challenger", "champion"} == set(table[0])
    assert len(versions(uninterrupted["runs"])) == 1


@pytest.mark.parametrize(
    ("deployment", "parameters", "said"),
    [
        ("evaluate/evaluate", {"task": "1-1", "units": 0}, "less than the minimum"),
        ("evaluate/evaluate", {"task": "9-9"}, "does not match"),
        ("pipeline/pipeline", {"configuration": "configs/demo.yaml"}, "configuration"),
    ],
)
def test_invalid_parameters_start_no_run(
    server: PrefectServer, deployment: str, parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(AssertionError, match=f"409.*{said}"):
        server.start_run(deployment, parameters)


def test_an_invalid_experiment_fails_without_a_retry(
    server: PrefectServer, tmp_path: Path, receiver: Receiver
) -> None:
    with server.worker(tmp_path / "runs"):
        flow_run = server.start_run("train/train", {"config": "configs/there-is-none.yaml"})
        state = server.wait(flow_run)
    assert state["name"] == "Failed"
    assert "there-is-none" in state["message"]
    names = [each["name"] for each in server.states(flow_run)]
    assert "AwaitingRetry" not in names, "a configuration error is not retried"
    assert server.run(flow_run)["run_count"] == 1
    assert "there-is-none" in receiver.wait_for("Failed: ")


def test_a_collapse_has_its_own_state_and_pauses_its_deployment(
    server: PrefectServer, tmp_path: Path, receiver: Receiver
) -> None:
    weekly = server.call("GET", "/deployments/name/pipeline/weekly-1-1")
    assert not weekly["paused"]
    with server.worker(tmp_path / "runs"):
        flow_run = server.start_run(
            "pipeline/weekly-1-1",
            {**PARAMETERS, "overrides": [*TRAINING, "algorithm.learning_rate=1e30"]},
        )
        state = server.wait(flow_run)
        assert state["name"] == "Collapsed", f"{state}\n{server.log()}"
        assert "diverged" in state["message"]
        told = receiver.wait_for("Collapsed: ")
    assert "pipeline smoke" in told
    deadline = time.monotonic() + 60
    while not server.call("GET", f"/deployments/{weekly['id']}")["paused"]:
        assert time.monotonic() < deadline, "the deployment is not paused"
        time.sleep(0.5)
    assert "AwaitingRetry" not in [each["name"] for each in server.states(flow_run)]
    assert versions(tmp_path / "runs") == []
    # A person resumes it; resuming it again changes nothing.
    assert "changed   deployment weekly-1-1" in server.mario("flows", "resume", "weekly-1-1")
    assert not server.call("GET", f"/deployments/{weekly['id']}")["paused"]
    assert server.mario("flows", "resume", "weekly-1-1").startswith("nothing to change")


def test_a_second_training_waits_for_the_gpu_and_cpu_work_does_not(
    server: PrefectServer, tmp_path: Path, postgres_database: str
) -> None:
    """With the default of one GPU, a second training begins once a person cancels the first.

    The evaluation is requested last and ends first, so the worker has polled for work meanwhile.
    """
    runs = tmp_path / "runs"
    context = JobContext(JobSettings(runs, postgres_database, f"sqlite:///{runs / 'mlflow.db'}"))
    runs.mkdir()
    registry = context.registry
    write_odds_policy(runs / "good", GOOD)
    registry.register("mario-1-1", runs / "good", run_id=None)
    endless = {**PARAMETERS, "overrides": [*TRAINING, "total_steps=10000000"]}
    setup = ("flows", "setup", "--pool", "process")
    assert "changed   queue      process/gpu" in server.mario(*setup, MARIO_GPUS="")
    try:
        with server.worker(runs, MARIO_DATABASE_URL=postgres_database):
            first = server.start_run("train/train", endless)
            wait_for_checkpoints(server, runs, first, 1)
            second = server.start_run("train/train", PARAMETERS)
            evaluation = server.start_run(
                "evaluate/evaluate", {"task": "1-1", "policy": "1", "units": 4}
            )
            state = server.wait(evaluation)
            assert state["type"] == "COMPLETED", f"{state}\n{server.log()}"
            assert "4 units" in state["message"]
            assert server.run(first)["state"]["type"] == "RUNNING", (
                "the first training uses the GPU"
            )
            assert {each["type"] for each in server.states(second)} == {"SCHEDULED"}
            assert server.run(second)["run_count"] == 0
            server.call("POST", f"/flow_runs/{first}/set_state", {"state": {"type": "CANCELLING"}})
            cancelled = server.wait(first)
            assert cancelled["type"] == "CANCELLED", f"{cancelled}\n{server.log()}"
            state = server.wait(second)
    finally:
        server.mario(*setup)
    assert (state["type"], state["name"]) == ("COMPLETED", "Registered"), server.log()
    began = next(each for each in server.states(second) if each["type"] == "PENDING")
    assert began["timestamp"] > cancelled["timestamp"], "the second training began too early"
    assert "AwaitingRetry" not in [each["name"] for each in server.states(first)]


def test_the_run_of_a_killed_worker_is_resumed(
    server: PrefectServer, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    with server.worker(runs) as worker:
        flow_run = server.start_run("pipeline/pipeline", LONG)
        wait_for_checkpoints(server, runs, flow_run, 2)
        kill_all(descendants(worker.pid))
    killed_at = time.time()
    assert server.run(flow_run)["state"]["type"] == "RUNNING", "nobody is left to report the crash"
    server.wait(flow_run, 600, "AwaitingRetry", "Late")
    crashed = next(s for s in server.states(flow_run) if s["name"] == "Crashed")
    assert "no heartbeat for" in crashed["message"]
    silent = datetime.fromisoformat(crashed["timestamp"]).timestamp() - killed_at
    assert silent < SILENCE_SECONDS + 60, "the limit plus the delay of a busy machine"

    with server.worker(runs):
        state = server.wait(flow_run)
    assert state["type"] == "COMPLETED", server.log()
    assert server.run(flow_run)["run_count"] == 2
    assert weights(runs, flow_run) == weights(uninterrupted["runs"], uninterrupted["flow_run"])
    assert len(versions(runs)) == 1, "the policy is registered once"
    with ExperimentStore.open(JobSettings.embedded(runs).database_url) as store:
        (run,) = store.runs.list()
    assert [attempt.status for attempt in run.attempts] == ["killed", "finished"]


def test_the_run_of_a_stopped_worker_is_resumed_by_the_next(
    server: PrefectServer, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    """Prefect's worker kills its flow runs when it is stopped, as for a new image."""
    runs = tmp_path / "runs"
    with server.worker(runs) as worker:
        flow_run = server.start_run("pipeline/pipeline", LONG)
        wait_for_checkpoints(server, runs, flow_run, 1)
        children = descendants(worker.pid)[1:]
        os.killpg(worker.pid, signal.SIGTERM)
        assert worker.wait(120) == 0, server.log()
    assert children
    assert not any(Path(f"/proc/{pid}").exists() for pid in children), "all processes have exited"
    server.wait(flow_run, 600, "AwaitingRetry", "Late")
    with server.worker(runs):
        state = server.wait(flow_run)
    assert state["type"] == "COMPLETED", f"{state}\n{server.log()}"
    assert server.run(flow_run)["run_count"] == 2
    assert weights(runs, flow_run) == weights(uninterrupted["runs"], uninterrupted["flow_run"])
    assert len(versions(runs)) == 1


def test_a_run_completes_although_its_server_is_killed(
    server: PrefectServer, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    with server.worker(runs):
        flow_run = server.start_run("pipeline/pipeline", LONG)
        wait_for_checkpoints(server, runs, flow_run, 1)
        server.kill()
        time.sleep(2)
        server.start()
        state = server.wait(flow_run)
    assert state["type"] == "COMPLETED", f"{state}\n{server.log()}"
    assert weights(runs, flow_run) == weights(uninterrupted["runs"], uninterrupted["flow_run"])
    assert len(versions(runs)) == 1


def test_concurrent_promotions_are_judged_against_the_current_champion(
    server: PrefectServer, tmp_path: Path, receiver: Receiver, postgres_database: str
) -> None:
    """Two versions are judged at a time; the later promotion is judged against the new champion."""
    runs = tmp_path / "runs"
    context = JobContext(JobSettings(runs, postgres_database, f"sqlite:///{runs / 'mlflow.db'}"))
    runs.mkdir()
    registry = context.registry
    for number, config_hash in enumerate(("0" * 64, "1" * 64), start=1):
        folder = runs / f"good-{number}"
        write_odds_policy(folder, GOOD, config_hash=config_hash)
        registry.register("mario-1-1", folder, run_id=None)
    overrides = ["game.actions=complex", "gate.primary=progress", "gate.alpha=0.4",
                 "gate.max_units=60", "gate.min_units=8"]  # fmt: skip
    parameters = {"config": "configs/smoke.yaml", "overrides": overrides}
    with server.worker(runs, MARIO_DATABASE_URL=postgres_database):
        flow_runs = [
            server.start_run("promote/promote", {**parameters, "policy": str(version)})
            for version in (1, 2)
        ]
        states = [server.wait(flow_run) for flow_run in flow_runs]
        assert all(state["type"] == "COMPLETED" for state in states), f"{states}\n{server.log()}"
        with ExperimentStore.open(postgres_database) as store:
            ledger = store.ledger.history("mario-1-1")
            verdicts = {v.id: v for v in store.evaluations.verdicts("mario-1-1")}
        assert [row.sequence for row in ledger] == list(range(1, len(ledger) + 1))
        assert len(ledger) == [state["name"] for state in states].count("Promoted")
        for row in ledger:
            assert row.verdict_id is not None
            judged = verdicts[row.verdict_id]
            assert judged.champion_version == row.previous_version, (
                "judged against the champion of that time"
            )
        # The event of a promotion starts the nightly check of the new champion.
        assert "mario-1-1" in receiver.wait_for("Promoted: ")
        deadline = time.monotonic() + 120
        while True:
            nights = server.call(
                "POST", "/flow_runs/filter", {"deployments": {"name": {"any_": ["nightly"]}}}
            )
            nights = [night for night in nights if not night["auto_scheduled"]]
            if nights:
                break
            assert time.monotonic() < deadline, server.log()
            time.sleep(0.5)
        state = server.wait(nights[0]["id"])
    assert state["name"] == "Steady", f"{state}\n{server.log()}"


def test_concurrent_pipelines_keep_one_ledger(
    server: PrefectServer, tmp_path: Path, postgres_database: str
) -> None:
    """Two pipelines train at a time, with different seeds, and are judged against the champion.

    If the judgements overlap, both are against the first champion, and the later version is judged
    again, against the new one. If not, it is judged against the new champion only. Both can happen
    here; `test_flows_outages.py` forces the overlap.
    """
    runs = tmp_path / "runs"
    context = JobContext(JobSettings(runs, postgres_database, f"sqlite:///{runs / 'mlflow.db'}"))
    runs.mkdir()
    registry = context.registry
    write_odds_policy(runs / "stuck", STUCK)
    registry.register("mario-1-1", runs / "stuck", run_id=None)
    registry.promote("mario-1-1", 1, verdict_id=None, promoted_by="test")
    overrides = [each for each in TRAINING if "max_units" not in each]
    # Networks that are hardly trained and sample their actions go right and differ. The champion is
    # no network, so its latency is near 0. So many units that the judgements mostly overlap.
    overrides += ["game.actions=right_only", "evaluation.action_selection=sample",
                  "gate.max_latency_ratio=1000", "gate.alpha=0.4", "gate.max_units=120",
                  "gate.min_units=32"]  # fmt: skip
    parameters = {**PARAMETERS, "overrides": overrides, "next_seed": True}
    with server.worker(runs, MARIO_DATABASE_URL=postgres_database):
        flow_runs = [server.start_run("pipeline/pipeline", parameters) for _ in range(2)]
        states = [server.wait(flow_run) for flow_run in flow_runs]
    assert all(state["type"] == "COMPLETED" for state in states), f"{states}\n{server.log()}"
    names = [state["name"] for state in states]
    assert "Promoted" in names, f"{states}\n{server.log()}"
    registry = context.registry
    complete = [v for v in registry.versions("mario-1-1") if v.state == "complete"]
    assert sorted(version.version for version in complete) == [1, 2, 3]
    with ExperimentStore.open(postgres_database) as store:
        ledger = store.ledger.history("mario-1-1")
        verdicts = store.evaluations.verdicts("mario-1-1")
        seeds = {run.id: run.config["seed"] for run in store.runs.list()}
    alias = registry.mlflow.aliases("mario-1-1")["champion"]
    assert sorted(seeds) == sorted(run_id_for(flow_run) for flow_run in flow_runs)
    assert sorted(seeds.values()) == [1, 2], "the seed of the file and the next one"
    assert [row.sequence for row in ledger] == list(range(1, len(ledger) + 1)), (
        "the ledger has no gap"
    )
    assert len(ledger) == 1 + names.count("Promoted")
    assert alias == ledger[-1].version, "the alias follows the ledger"
    by_id = {verdict.id: verdict for verdict in verdicts}
    for row, before in zip(ledger[1:], ledger, strict=False):
        assert row.previous_version == before.version, "no promotion is lost"
        assert row.verdict_id is not None
        assert by_id[row.verdict_id].champion_version == before.version
    # Each version was judged against the champion of that time. A verdict to promote led to a
    # promotion, or was refused as the other version was promoted meanwhile; then came another.
    winner, promoted = ledger[1].version, {row.version for row in ledger[1:]}
    by_verdict = {row.verdict_id for row in ledger[1:]}
    for version in (2, 3):
        judged = [verdict for verdict in verdicts if verdict.challenger_version == version]
        met = [verdict.champion_version for verdict in judged]
        assert met in ([[1]] if version == winner else [[1], [winner], [1, winner]])
        assert (judged[-1].decision == "promote") == (version in promoted)
        for refused in judged[:-1]:
            assert refused.decision == "promote", refused.detail["reasons"]
            assert refused.id not in by_verdict


def test_retraining_the_policy_of_the_champion_changes_nothing(
    server: PrefectServer, tmp_path: Path
) -> None:
    """The same seed and commit give the same policy; the champion has no verdict here."""
    runs = tmp_path / "runs"
    # The commit is part of a policy; it is fixed here.
    commit = {"GIT_DIR": str(tmp_path / "none"), "MARIO_GIT_COMMIT": "0" * 40}
    with server.worker(runs, **commit):
        server.wait(server.start_run("pipeline/pipeline", PARAMETERS))
        with JobContext(JobSettings.embedded(runs)) as context:
            registry = context.registry
            registry.promote("mario-1-1", 1, verdict_id=None, promoted_by="a person")
        flow_run = server.start_run("pipeline/pipeline", PARAMETERS)
        state = server.wait(flow_run)
    assert (state["type"], state["name"]) == ("COMPLETED", "Unchanged"), server.log()
    assert "byte for byte" in state["message"]
    assert "without a verdict" in server.artifacts(flow_run)["verdict-mario-1-1"]["data"]
    assert len(versions(runs)) == 2


def test_the_metrics_page_counts_ended_runs(
    server: PrefectServer, uninterrupted: dict[str, Any]
) -> None:
    instruments = InstrumentSet()
    monitor = FlowMonitor(server.url, LoopMetrics(instruments))
    get = instruments.registry.get_sample_value
    monitor.refresh()
    label = {"flow": "pipeline", "state": "completed"}
    counted = get("mario_pipeline_runs_total", label)
    assert counted is not None
    assert counted >= 1
    monitor.refresh()
    assert get("mario_pipeline_runs_total", label) == counted, (
        "a second refresh counts no run twice"
    )
    stages = get("mario_pipeline_stage_seconds_count", {"flow": "pipeline", "stage": "train"})
    assert stages is not None
    assert stages >= 1
    ended = get("mario_pipeline_last_success_timestamp_seconds", {"flow": "pipeline"})
    assert ended is not None
    assert abs(ended - time.time()) < 3600
