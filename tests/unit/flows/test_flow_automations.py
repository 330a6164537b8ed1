"""Test the definitions of the automations without a server."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ResourceSpecification
from prefect.states import InfrastructurePending, Pending, Submitting

from flows import parameters
from flows.automations import (
    BEGIN_SECONDS,
    NIGHTLY,
    PREFIX,
    SILENCE_SECONDS,
    automations,
    scheduled_trainings,
)
from flows.decisions import MAX_ATTEMPTS
from flows.deployments import load_deployments
from flows.setup import _normalised, _seconds_from_environment
from flows.work_pools import HEARTBEAT_SECONDS
from mario.errors import FlowError
from tests.support.paths import ROOT

FILE = ROOT / "prefect.yaml"
WEBHOOK, NIGHTLY_ID = str(uuid4()), str(uuid4())


def deployment(
    id_: str, flow: str, given: dict[str, Any] | None, *, scheduled: bool = True
) -> dict[str, Any]:
    """A deployment as Prefect's server returns it."""
    return {
        "id": id_,
        "entrypoint": f"flows/{flow}.py:{flow}",
        "parameters": None if given is None else {"parameters": given},
        "schedules": [{"slug": "nights"}] if scheduled else [],
    }


PPO = {"config": "configs/ppo_1-1.yaml"}
WEEKLY, IN_IMAGE = str(uuid4()), str(uuid4())
DEPLOYMENTS = {
    NIGHTLY: deployment(NIGHTLY_ID, "nightly", {"task": "1-1", "units": 33, "alpha": 0.02}),
    "pipeline/weekly": deployment(WEEKLY, "pipeline", PPO),
    "pipeline/in-image": deployment(IN_IMAGE, "pipeline", {"config": "/app/configs/ppo_1-1.yaml"}),
    "train/by-hand": deployment(str(uuid4()), "train", PPO, scheduled=False),
}


@pytest.fixture(scope="module")
def made() -> dict[str, dict[str, Any]]:
    found = automations(DEPLOYMENTS, webhook_id=WEBHOOK)
    assert len({each["name"] for each in found}) == len(found), "names are unique"
    assert all(each["name"].startswith(PREFIX) for each in found)
    return {each["name"].removeprefix(PREFIX): _normalised(each) for each in found}


def test_automations_are_valid_and_limit_retries(made: dict[str, dict[str, Any]]) -> None:
    silent = made["a silent run has crashed"]["trigger"]
    assert silent["posture"] == "Proactive"
    assert silent["within"] == SILENCE_SECONDS >= 3 * HEARTBEAT_SECONDS
    again = made["a crashed run goes on"]["trigger"]
    assert again["match"]["prefect.run-count"] == [str(n) for n in range(1, MAX_ATTEMPTS)]
    # `run-count` counts attempts that begin; this automation counts scheduled ones.
    loop = made["a run that crashes before it begins has failed"]
    assert loop["trigger"]["expect"] == ["prefect.flow-run.AwaitingRetry"]
    assert loop["trigger"]["for_each"] == ["prefect.resource.id"]
    assert loop["trigger"]["threshold"] == MAX_ATTEMPTS > len(again["match"]["prefect.run-count"])
    assert loop["actions"][0]["state"] == "FAILED"
    assert WEBHOOK in json.dumps(made)
    without = automations({}, webhook_id=None)
    assert "call-webhook" not in json.dumps(without)
    assert "run-deployment" not in json.dumps(without)
    assert any("pause-deployment" in json.dumps(each) for each in without)


def test_every_state_of_a_claimed_run_restarts_the_time_to_begin(
    made: dict[str, dict[str, Any]],
) -> None:
    """The event of a state that is not named would end the wait, and the run would hang."""
    begins = made["a run that does not begin has crashed"]
    trigger = EventTrigger.model_validate(begins["trigger"])
    for state in (Pending(), Submitting(), InfrastructurePending()):
        event = f"prefect.flow-run.{state.name}"
        assert trigger.starts_after(event), event
        assert trigger.expects(event), event
    for name in ("Running", "Crashed", "Cancelled", "AwaitingRetry", "Promoted"):
        assert trigger.expects(f"prefect.flow-run.{name}")
        assert not trigger.starts_after(f"prefect.flow-run.{name}")
    assert trigger.within.total_seconds() == BEGIN_SECONDS > SILENCE_SECONDS
    assert begins["actions"][0]["state"] == "CRASHED"


@pytest.mark.parametrize(
    ("run_count", "message", "wanted"),
    [
        (0, "did not begin", {"a run that was lost before it began is tried again"}),
        (0, "no such image", {"a person is told of a run that could not begin"}),
        (0, "", {"a person is told of a run that could not begin"}),
        (1, "did not begin", {"a crashed run goes on"}),
        (1, "no heartbeat", {"a crashed run goes on"}),
        (MAX_ATTEMPTS, "did not begin", {"a person is told of a crash for good"}),
        (MAX_ATTEMPTS, "no heartbeat", {"a person is told of a crash for good"}),
    ],
)
def test_each_crash_is_either_retried_or_notified(
    made: dict[str, dict[str, Any]], run_count: int, message: str, wanted: set[str]
) -> None:
    if message == "did not begin":
        message = made["a run that does not begin has crashed"]["actions"][0]["message"]
    crash = {
        "prefect.resource.id": f"prefect.flow-run.{uuid4()}",
        "prefect.run-count": str(run_count),
        "prefect.state-message": message,
    }
    fired = {
        name
        for name, each in made.items()
        if each["trigger"]["expect"] == ["prefect.flow-run.Crashed"]
        and ResourceSpecification.model_validate(each["trigger"]["match"]).matches(crash)  # type: ignore[arg-type]
    }
    assert fired == wanted


def test_every_retry_is_counted(made: dict[str, dict[str, Any]]) -> None:
    counted = made["a run that crashes before it begins has failed"]["trigger"]["match"]
    said = {
        action["message"]
        for each in made.values()
        for action in each["actions"]
        if action.get("name") == "AwaitingRetry"
    }
    assert said == set(counted["prefect.state-message"])


def test_a_collapse_pauses_all_schedules_of_the_experiment(
    made: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    collapse = made["a collapse of ppo_1-1 pauses its schedules"]
    assert [action["deployment_id"] for action in collapse["actions"]] == [IN_IMAGE, WEEKLY]
    names = ResourceSpecification.model_validate(collapse["trigger"]["match"])
    for flow in ("pipeline", "train"):
        for config, same in (
            ("configs/ppo_1-1.yaml", True),
            ("/app/configs/ppo_1-1.yaml", True),
            ("configs/ppo_1-2.yaml", False),
            ("configs/ppo_1-1b.yaml", False),
        ):
            run = SimpleNamespace(flow_name=flow, parameters={"parameters": {"config": config}})
            monkeypatch.setattr(parameters, "flow_run", run)
            resource: Any = {
                "prefect.resource.id": f"prefect.flow-run.{uuid4()}",
                "prefect.resource.name": parameters.experiment_run_name(),
            }
            assert names.matches(resource) == same, resource


def test_scheduled_trainings_are_grouped_by_experiment() -> None:
    found = scheduled_trainings(
        {
            "pipeline/weekly": deployment("1", "pipeline", PPO),
            "train/nights": deployment("2", "train", {"config": "/app/configs/ppo_1-1.yaml"}),
            "pipeline/by-hand": deployment("3", "pipeline", PPO, scheduled=False),
            "promote/weekly": deployment("4", "promote", PPO),
            "pipeline/other": deployment("5", "pipeline", {"config": "configs/ppo_all.yaml"}),
            "train/default": deployment("6", "train", {}),
            "train/bare": deployment("7", "train", None),
            "removed/weekly": deployment("8", "removed", PPO),
        }
    )
    assert found == {"ppo_1-1": ["1", "2"], "ppo_all": ["5"], "demo": ["7", "6"]}


def test_scheduled_trainings_of_prefect_yaml() -> None:
    deployments = {
        f"{each['flow_name']}/{each['name']}": {**each, "id": each["name"]}
        for each in load_deployments(FILE, environment={"MARIO_GIT_COMMIT": "v1.2.3"})
    }
    assert scheduled_trainings(deployments) == {"ppo_1-1": ["weekly-1-1"]}


def test_a_promotion_starts_nightly_with_the_parameters_of_its_deployment(
    made: dict[str, dict[str, Any]],
) -> None:
    (action,) = made["a promotion is looked at again"]["actions"]
    assert action["deployment_id"] == NIGHTLY_ID
    given = action["parameters"]["parameters"]
    assert (given["units"], given["alpha"]) == (33, 0.02)
    assert "mario.task" in given["task"]["template"]


def test_notifications_escape_the_reason_as_json(made: dict[str, dict[str, Any]]) -> None:
    from prefect.server.utilities.user_templates import render_user_template

    payload = made["a collapse pauses its schedule"]["actions"][1]["payload"]
    resource = {"prefect.resource.name": 'a "run"', "prefect.state-message": "why\nnot"}
    event = SimpleNamespace(resource=resource)
    rendered = asyncio.run(render_user_template(payload, {"event": event}))
    assert json.loads(rendered) == {"text": 'Collapsed: a "run": why\nnot'}


@pytest.mark.parametrize("given", ["soon", "9", "-90", "nan", "inf"])
def test_an_invalid_time_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARIO_BEGIN_SECONDS", given)
    with pytest.raises(FlowError, match=f"got MARIO_BEGIN_SECONDS={given}; expected seconds"):
        _seconds_from_environment("MARIO_BEGIN_SECONDS", 900.0)
    monkeypatch.setenv("MARIO_BEGIN_SECONDS", "")
    assert _seconds_from_environment("MARIO_BEGIN_SECONDS", 900.0) == 900.0
