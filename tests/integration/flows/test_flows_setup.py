"""Test `mario flows setup | deploy | resume | status` on a server that other projects use, too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.decisions import MAX_ATTEMPTS
from flows.deployments import deployment_names
from flows.prefect_api import Server
from flows.setup import apply_automations, deploy, resume, summary
from flows.stages import PROMOTED_EVENT
from flows.status import status
from mario.errors import FlowError
from tests.support.prefect_server import ROOT, PrefectServer, Receiver, prefect_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

BEGIN_SECONDS = 15
#: How long Prefect's server keeps expired triggers by default.
FORGETTING_SECONDS = 60
URL = "postgresql+psycopg2://mario:correct-horse-battery@db.example/mario"
#: Collapses in the first update.
BROKEN = (
    "network.threads=1", "total_steps=1536", "checkpoint.every_steps=256",
    "selection.every_steps=1000000", "algorithm.learning_rate=1e30",
)  # fmt: skip
FILE = ROOT / "prefect.yaml"
SMOKE = {"config": "configs/smoke.yaml", "overrides": [], "next_seed": False}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[PrefectServer]:
    with prefect_server(
        tmp_path_factory.mktemp("prefect"),
        MARIO_WEBHOOK_URL=receiver.url,
        PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER="P1D",  # as the guide has it
    ) as made:
        made.mario("flows", "setup")
        made.mario("flows", "deploy")
        yield made


@pytest.fixture
def api(server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A connection to the server, to do what `mario flows` does in this process."""
    for name, value in server.environment.items():
        if name.startswith("MARIO_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("PREFECT_API_URL", server.url)
    with temporary_settings({PREFECT_API_URL: server.url}), Server.connect() as made:
        yield made


def entry(name: str, *, flow: str = "flows/pipeline.py:pipeline", **changes: Any) -> dict[str, Any]:
    """A deployment as in `prefect.yaml`; by default it trains `smoke` on schedule."""
    made = {
        "name": name,
        "version": "v1",
        "tags": ["mario", "train"],
        "entrypoint": flow,
        "parameters": {"parameters": SMOKE},
        "work_pool": {"name": "process", "work_queue_name": "gpu", "job_variables": {}},
        "schedules": [{"slug": "nights", "cron": "0 3 * * *"}],
    }
    return {**made, **changes}


@pytest.fixture
def apply(server: PrefectServer, api: Server, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """A function that deploys entries of its own file; afterwards they are deleted."""
    file = tmp_path / "prefect.yaml"
    step = {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}
    names: set[str] = set()

    def write(*entries: dict[str, Any]) -> str:
        names.update(each["name"] for each in entries)
        file.write_text(yaml.safe_dump({"pull": [step], "deployments": [*entries]}))
        return summary(deploy(api, file, root=ROOT))

    yield write
    for each in server.call("POST", "/deployments/filter", {}):
        if each["name"] in names:
            server.call("DELETE", f"/deployments/{each['id']}")
    deploy(api, FILE, root=ROOT)


def schedules(server: PrefectServer, deployment: str) -> dict[str, tuple[str, bool]]:
    """The cron and the activity of schedules, by slug."""
    found = server.call("GET", f"/deployments/name/{deployment}")["schedules"]
    made = {each["slug"]: (each["schedule"]["cron"], each["active"]) for each in found}
    assert len(made) == len(found)
    return made


def test_deploy_makes_the_schedules_those_of_the_file(
    server: PrefectServer, apply: Callable[..., str]
) -> None:
    name, nothing = "pipeline/scheduled", "nothing to change"
    nights = {"slug": "nights", "cron": "0 3 * * *", "timezone": "Europe/Berlin"}
    days = {"slug": "days", "cron": "0 12 * * *"}
    assert f"created   deployment {name}" in apply(entry("scheduled", schedules=[nights, days]))
    assert apply(entry("scheduled", schedules=[nights, days])).startswith(nothing)
    assert schedules(server, name) == {"nights": ("0 3 * * *", True), "days": ("0 12 * * *", True)}

    # One schedule is removed, the other moved to another hour.
    nights["cron"] = "0 4 * * *"
    assert f"changed   deployment {name} (schedules)" in apply(
        entry("scheduled", schedules=[nights])
    )
    assert schedules(server, name) == {"nights": ("0 4 * * *", True)}
    assert apply(entry("scheduled", schedules=[nights])).startswith(nothing)

    # A renamed schedule is a new one; one that a person added in Prefect's page is deleted.
    id_ = server.call("GET", f"/deployments/name/{name}")["id"]
    by_hand = [{"active": True, "schedule": {"cron": "0 5 * * *", "timezone": "UTC"}}]
    server.call("POST", f"/deployments/{id_}/schedules", by_hand)
    nights["slug"] = "early"
    assert f"changed   deployment {name} (schedules)" in apply(
        entry("scheduled", schedules=[nights])
    )
    assert schedules(server, name) == {"early": ("0 4 * * *", True)}

    assert f"changed   deployment {name} (schedules)" in apply(entry("scheduled", schedules=[]))
    assert schedules(server, name) == {}
    assert apply(entry("scheduled", schedules=[])).startswith(nothing)


def test_a_schedule_is_active_if_file_and_server_activate_it(
    server: PrefectServer, apply: Callable[..., str]
) -> None:
    name, nothing = "pipeline/switched", "nothing to change"
    on, off = ({"slug": "nights", "cron": "0 3 * * *", "active": each} for each in (True, False))
    apply(entry("switched", schedules=[on]))
    assert f"changed   deployment {name} (schedules)" in apply(entry("switched", schedules=[off]))
    assert schedules(server, name) == {"nights": ("0 3 * * *", False)}
    assert apply(entry("switched", schedules=[off])).startswith(nothing)
    # The server does not record who switched it off, so a person must switch it on.
    assert apply(entry("switched", schedules=[on])).startswith(nothing)
    assert schedules(server, name) == {"nights": ("0 3 * * *", False)}
    found = server.call("GET", f"/deployments/name/{name}")
    path = f"/deployments/{found['id']}/schedules/{found['schedules'][0]['id']}"
    server.call("PATCH", path, {"active": True})
    assert apply(entry("switched", schedules=[on])).startswith(nothing)
    assert schedules(server, name) == {"nights": ("0 3 * * *", True)}

    # A schedule switched off and a deployment paused by a person stay so after a change.
    server.call("PATCH", path, {"active": False})
    server.call("POST", f"/deployments/{found['id']}/pause_deployment", {})
    assert "(schedules)" in apply(entry("switched", schedules=[{**on, "cron": "0 4 * * *"}]))
    assert schedules(server, name) == {"nights": ("0 4 * * *", False)}
    assert server.call("GET", f"/deployments/{found['id']}")["paused"]


def report(
    server: PrefectServer, flow_run: str, type_: str, name: str | None = None, message: str = ""
) -> None:
    """Report a state as a worker or the process of a flow run does."""
    state = {"type": type_, "name": name, "message": message}
    answer = server.call("POST", f"/flow_runs/{flow_run}/set_state", {"state": state})
    assert answer["status"] == "ACCEPT", answer


def claim(server: PrefectServer, flow_run: str) -> None:
    """Report what a worker reports before it starts a process or a container."""
    report(server, flow_run, "PENDING", "Pending")
    report(server, flow_run, "PENDING", "Submitting")


@pytest.fixture
def short_begin_limit(api: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that allows a claimed run a few seconds to begin."""
    monkeypatch.setenv("MARIO_BEGIN_SECONDS", str(BEGIN_SECONDS))
    said = summary(apply_automations(api))
    assert "changed   automation mario: a run that does not begin has crashed" in said
    yield
    monkeypatch.delenv("MARIO_BEGIN_SECONDS")
    apply_automations(api)


@pytest.mark.usefixtures("short_begin_limit")
def test_a_claimed_run_that_never_begins_crashes_and_is_retried(
    server: PrefectServer, receiver: Receiver
) -> None:
    """The worker's machine was lost between claim and beginning, so nobody reports a crash."""
    smoke = {"config": "configs/smoke.yaml"}
    lost, pending, again, in_time, told = (server.start_run("train/train", smoke) for _ in range(5))
    report(server, again, "RUNNING")
    report(server, again, "CRASHED", "Crashed", "its process ended with 9")
    server.wait(again, 120, "AwaitingRetry", "Late")
    for flow_run in (lost, again, in_time):
        claim(server, flow_run)
    report(server, pending, "PENDING")
    report(server, in_time, "RUNNING")
    report(server, told, "PENDING")
    report(server, told, "CRASHED", "Crashed", "no such image")

    for flow_run, begun in ((lost, 0), (pending, 0), (again, 1)):
        server.wait(flow_run, 120, "AwaitingRetry", "Late")
        states = server.states(flow_run)
        names = [each["name"] for each in states]
        crashed = states[-2] if names[-1] == "AwaitingRetry" else states[-3]
        assert crashed["name"] == "Crashed", names
        assert crashed["message"].startswith(f"did not begin within {BEGIN_SECONDS} s")
        claimed = next(each for each in reversed(states) if each["type"] == "PENDING")
        moments = [datetime.fromisoformat(each["timestamp"]) for each in (claimed, crashed)]
        assert (moments[1] - moments[0]).total_seconds() >= BEGIN_SECONDS
        assert server.run(flow_run)["run_count"] == begun

    # The retries end.
    for _ in range(1, MAX_ATTEMPTS):
        assert server.run(lost)["state"]["type"] == "SCHEDULED"
        before = len(server.states(lost))
        claim(server, lost)
        deadline = time.monotonic() + 120
        while "Crashed" not in [each["name"] for each in server.states(lost)[before:]]:
            assert time.monotonic() < deadline, server.states(lost)
            time.sleep(0.5)
        server.wait(lost, 120, "AwaitingRetry", "Late", "Failed")
    state = server.wait(lost, 120, "Failed")
    assert f"crashed {MAX_ATTEMPTS} times" in state["message"]
    receiver.wait_for(f"Failed: {server.run(lost)['name']}")

    assert server.run(in_time)["state"]["name"] == "Running", "a run that has begun is left alone"
    assert "Crashed" not in [each["name"] for each in server.states(in_time)]
    report(server, in_time, "COMPLETED")
    # A crash that a worker reports is not retried, and is the only one notified at once.
    assert server.run(told)["state"]["name"] == "Crashed"
    assert "no such image" in receiver.wait_for(f"Crashed for good: {server.run(told)['name']}")
    assert not [
        each["text"]
        for each in receiver.messages
        for flow_run in (lost, pending, again)
        if f"Crashed for good: {server.run(flow_run)['name']}" in each["text"]
    ]


@pytest.mark.usefixtures("short_begin_limit")
def test_runs_lost_with_the_server_crash_after_its_restart(
    server: PrefectServer,
) -> None:
    """As after a power cut of a single machine; by default the server forgets such runs."""
    smoke = {"config": "configs/smoke.yaml"}
    claimed, begun = (server.start_run("train/train", smoke) for _ in range(2))
    claim(server, claimed)
    report(server, begun, "RUNNING")
    report(server, begun, "CRASHED", "Crashed", "its process ended with 9")
    server.wait(begun, 120, "AwaitingRetry", "Late")
    claim(server, begun)
    time.sleep(2)  # their events are written a moment later
    server.kill()
    time.sleep(BEGIN_SECONDS + FORGETTING_SECONDS + 10)
    server.start()
    for flow_run in (claimed, begun):
        # The retry waits for the event of the claim, which the killed server had processed: Prefect
        # delays it by 15 minutes if the claim is less than five minutes old.
        server.wait(flow_run, 180, "Crashed", "AwaitingRetry", "Late")
        said = [each["message"] or "" for each in server.states(flow_run)]
        assert any(message.startswith("did not begin within") for message in said), said


def paused(server: PrefectServer, deployment: str) -> bool:
    return bool(server.call("GET", f"/deployments/name/{deployment}")["paused"])


def test_a_collapse_pauses_every_schedule_of_its_experiment(
    server: PrefectServer, api: Server, apply: Callable[..., str], tmp_path: Path
) -> None:
    """The collapsed run came from a deployment without a schedule; two others have one."""
    image = {"parameters": {**SMOKE, "config": "/app/configs/smoke.yaml"}}
    other = {"parameters": {**SMOKE, "config": "configs/ppo_1-1.yaml"}}
    said = apply(
        entry("weekly-smoke"),
        entry("train-smoke", flow="flows/train.py:train", parameters=image),
        entry("smoke-by-hand", schedules=[]),
        entry("weekly-other", parameters=other),
    )
    assert "created   automation mario: a collapse of smoke pauses its schedules" in said
    with server.worker(tmp_path / "runs"):
        flow_run = server.start_run("pipeline/pipeline", {**SMOKE, "overrides": list(BROKEN)})
        state = server.wait(flow_run)
    assert state["name"] == "Collapsed", f"{state}\n{server.log()}"
    deadline = time.monotonic() + 60
    while not all(paused(server, name) for name in ("pipeline/weekly-smoke", "train/train-smoke")):
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.5)
    for name in ("pipeline/weekly-other", "pipeline/weekly-1-1", "pipeline/smoke-by-hand"):
        assert not paused(server, name), name
    # The next deploy leaves it paused; a person resumes it.
    assert "deployment pipeline/weekly-smoke" not in apply(entry("weekly-smoke"))
    assert paused(server, "pipeline/weekly-smoke")
    assert resume(api, "weekly-smoke").line() == "changed   deployment weekly-smoke (paused)"
    assert not paused(server, "pipeline/weekly-smoke")
    assert resume(api, "pipeline/pipeline").outcome == "changed", (
        "the deployment of the collapsed run"
    )


def test_a_promotion_starts_the_nightly_deployment(
    server: PrefectServer, apply: Callable[..., str]
) -> None:
    given = {"parameters": {"task": "1-1", "units": 33, "alpha": 0.02}}
    nightly = entry("nightly", flow="flows/nightly.py:nightly", parameters=given)
    said = apply(nightly)
    assert "changed   automation mario: a promotion is looked at again (actions)" in said
    asked = {"deployments": {"name": {"any_": ["nightly"]}}}
    deadline = time.monotonic() + 120
    found: list[dict[str, Any]] = []
    while not found:
        assert time.monotonic() < deadline, server.log()
        # An automation that was just created may miss an event.
        server.call("POST", "/events", [promotion("mario-1-2")])
        time.sleep(5)
        found = [
            each
            for each in server.call("POST", "/flow_runs/filter", asked)
            if not each["auto_scheduled"]
        ]
    assert found[0]["parameters"] == {"parameters": {"task": "1-2", "units": 33, "alpha": 0.02}}


def promotion(model: str) -> dict[str, Any]:
    """The event that `flows/stages.py` emits for a new champion."""
    return {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": PROMOTED_EVENT,
        "resource": {
            "prefect.resource.id": f"mario.model.{model}",
            "prefect.resource.name": model,
            "mario.task": model.removeprefix("mario-"),
            "mario.version": "7",
        },
    }


def foreign(server: PrefectServer, flow: str, name: str, **changes: Any) -> str:
    """Create a paused deployment of another project; returns its id."""
    flow_id = server.call("POST", "/flows/", {"name": flow})["id"]
    body = {"name": name, "flow_id": flow_id, "entrypoint": "src/theirs.py:run", "paused": True}
    return str(server.call("POST", "/deployments/", {**body, **changes})["id"])


def test_deployments_of_others_are_neither_resumed_nor_shown(
    server: PrefectServer, api: Server, apply: Callable[..., str]
) -> None:
    apply(entry("twice"), entry("twice", flow="flows/train.py:train"))
    theirs = foreign(server, "elsewhere", "weekly-1-1")
    tagged = foreign(server, "elsewhere", "only-theirs", tags=["mario"])
    try:
        assert resume(api, "weekly-1-1").outcome == "unchanged", "this project's is not paused"
        for id_ in (theirs, tagged):
            assert server.call("GET", f"/deployments/{id_}")["paused"]
        with pytest.raises(FlowError, match=r"got deployment 'only-theirs'; expected one of .*/"):
            resume(api, "only-theirs")
        with pytest.raises(FlowError, match=r"expected one of pipeline/twice, train/twice; name"):
            resume(api, "twice")
        assert resume(api, "train/twice").outcome == "unchanged"
        shown = status(api, deployment_names(FILE))
        assert "only-theirs" not in shown
        assert shown.count("weekly-1-1 at") == 1
        # A deployment that the file no longer has stays active, and status says so.
        lines = shown.splitlines()
        at = next(n for n, line in enumerate(lines) if line.startswith("  pipeline/twice at v1"))
        assert "not in prefect.yaml" in lines[at + 1]
        assert "prefect deployment delete pipeline/twice" in lines[at + 1]
        assert shown.count("not in prefect.yaml") == 2
        assert "no prefect.yaml to compare" in status(api)
    finally:
        for id_ in (theirs, tagged):
            server.call("DELETE", f"/deployments/{id_}")


def test_a_deployment_of_another_project_is_not_overwritten(
    server: PrefectServer, api: Server, tmp_path: Path
) -> None:
    theirs = foreign(server, "pipeline", "taken")
    file = tmp_path / "prefect.yaml"
    file.write_text(yaml.safe_dump({"deployments": [entry("taken")]}))
    try:
        before = server.call("GET", f"/deployments/{theirs}")
        with pytest.raises(
            FlowError, match=r"pipeline/taken from src/theirs\.py:run .* another project"
        ):
            deploy(api, file, root=ROOT)
        assert server.call("GET", f"/deployments/{theirs}") == before
    finally:
        server.call("DELETE", f"/deployments/{theirs}")


def test_obsolete_automations_are_removed(server: PrefectServer, api: Server) -> None:
    name = "mario: a crashed run goes on"
    known = server.call("POST", "/automations/filter", {"limit": 200})
    (kept,) = [each for each in known if each["name"] == name]
    copy = {part: kept[part] for part in ("name", "description", "trigger", "actions")}
    old = {**copy, "name": "mario: a rule of an earlier release"}
    other = {**copy, "name": "somebody else's"}
    for each in (copy, old, other):
        each["trigger"] = {k: v for k, v in each["trigger"].items() if k != "id"}
        server.call("POST", "/automations/", each)
    try:
        said = summary(apply_automations(api))
        assert f"removed   automation {name}" in said
        assert f"removed   automation {old['name']}" in said
        assert "0 created, 0 changed, 2 removed" in said
        found = server.call("POST", "/automations/filter", {"limit": 200})
        names = [each["name"] for each in found]
        assert names.count(name) == 1
        assert old["name"] not in names
        assert names.count(other["name"]) == 1
        assert summary(apply_automations(api)).startswith("nothing to change")
        shown = status(api)
        assert name in shown
        assert other["name"] not in shown
    finally:
        for each in server.call("POST", "/automations/filter", {"limit": 200}):
            if each["name"] == other["name"]:
                server.call("DELETE", f"/automations/{each['id']}")


def test_a_refused_block_does_not_print_its_password(server: PrefectServer, api: Server) -> None:
    block_type = server.call("GET", "/block_types/slug/secret")
    body = {"name": "no name!", "data": {"value": URL}, "block_type_id": block_type["id"]}
    with pytest.raises(FlowError) as refused:
        api.call("POST", "/block_documents/", body)
    said = str(refused.value)
    assert "422" in said
    assert "body." in said, "the refused field is named"
    for part in ("correct-horse", "db.example"):
        assert part not in said
