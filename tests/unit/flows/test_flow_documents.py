"""Test the deployments of `prefect.yaml` and the limits of pools and queues without a server."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from prefect import Flow

from flows.artifacts import file_link, verdict_page
from flows.deployments import load_deployments, load_flow
from flows.parameters import TrainParameters, experiment_run_name
from flows.work_pools import POOL_TYPES, pool, queues
from mario.errors import FlowError
from mario.jobs.context import JobContext, JobSettings
from tests.support.paths import ROOT

FILE = ROOT / "prefect.yaml"


@pytest.fixture(scope="module")
def deployments() -> dict[str, dict[str, Any]]:
    found = load_deployments(FILE, environment={"MARIO_GIT_COMMIT": "v1.2.3"})
    return {each["name"]: each for each in found}


def public_flows() -> dict[str, Flow[Any, Any]]:
    """Find all flows of the folder `flows`, by entry point."""
    found = {}
    for file in (ROOT / "flows").glob("*.py"):
        for name, value in vars(import_module(f"flows.{file.stem}")).items():
            if isinstance(value, Flow) and not name.startswith("_"):
                found[f"flows/{file.name}:{name}"] = value
    return found


def test_deployments_cover_every_flow_and_every_pool(
    deployments: dict[str, dict[str, Any]],
) -> None:
    assert {each["entrypoint"] for each in deployments.values()} == public_flows().keys()
    assert {each["work_pool_name"] for each in deployments.values()} == set(POOL_TYPES)
    for each in deployments.values():
        assert "mario" in each["tags"], "automations apply to runs with this tag"
        assert each["version"] == "v1.2.3"
        assert each["enforce_parameter_schema"]


def test_parameters_have_descriptions_defaults_and_limits(
    deployments: dict[str, dict[str, Any]],
) -> None:
    for each in deployments.values():
        definitions = each["parameter_openapi_schema"]["definitions"].values()
        fields = [
            (field, name in d.get("required", ()))
            for d in definitions
            for name, field in d.get("properties", {}).items()
        ]
        assert fields, each["name"]
        for field, required in fields:
            assert field.get("description"), (each["name"], field)
            assert required or "default" in field, (each["name"], field)
    evaluate = json.dumps(deployments["evaluate"]["parameter_openapi_schema"])
    assert '"minimum": 1' in evaluate
    with pytest.raises(Exception, match=r"(?i)extra|unexpected|invalid"):
        load_flow("flows/pipeline.py:pipeline").validate_parameters(
            {"parameters": {"no_such_key": 1}}
        )


def test_only_training_uses_the_gpu_queue(
    deployments: dict[str, dict[str, Any]],
) -> None:
    flows = public_flows()
    for each in deployments.values():
        trains = "train" in each["tags"]
        assert each["work_queue_name"] == ("gpu" if trains else "cpu"), each["name"]
        if flows[each["entrypoint"]].flow_run_name is experiment_run_name:
            assert trains, each["name"]


def test_a_flow_that_trains_names_its_runs_after_the_experiment() -> None:
    """Automations find training flows and collapsed runs by these names."""
    for entrypoint, each in public_flows().items():
        (model,) = (parameter.annotation for parameter in signature(each.fn, eval_str=True)
                    .parameters.values())  # fmt: skip
        trains = issubclass(model, TrainParameters)
        assert (each.flow_run_name is experiment_run_name) == trains, entrypoint


def test_queues_have_concurrency_limits() -> None:
    gpu, cpu = queues({})
    assert gpu["concurrency_limit"] == 1
    assert cpu["concurrency_limit"] > 1
    assert queues({"MARIO_GPUS": "4"})[0]["concurrency_limit"] == 4


@pytest.mark.parametrize("kind", POOL_TYPES)
def test_the_limit_of_a_pool_covers_its_queues(kind: str) -> None:
    for environment in ({}, {"MARIO_GPUS": "8"}, {"MARIO_GPUS": "16", "MARIO_CPU_RUNS": "9"}):
        together = sum(queue["concurrency_limit"] for queue in queues(environment))
        assert pool(kind, environment)["concurrency_limit"] >= together
    assert pool(kind, {"MARIO_GPUS": "8", "MARIO_POOL_LIMIT": "3"})["concurrency_limit"] == 3


def test_a_sweep_has_one_worker_per_place_in_the_gpu_queue(
    deployments: dict[str, dict[str, Any]],
) -> None:
    assert deployments["sweep"]["work_queue_name"] == "gpu"
    assert deployments["sweep"]["parameters"]["parameters"]["workers"] == 1


def test_schedules_have_valid_time_zones(deployments: dict[str, dict[str, Any]]) -> None:
    schedules = [s for each in deployments.values() for s in each["schedules"]]
    assert len(schedules) >= 2
    for schedule in schedules:
        assert schedule["slug"]
        zone = ZoneInfo(schedule["schedule"]["timezone"])
        assert datetime.now(zone).tzinfo is not None


@pytest.mark.parametrize("own", [True, False])
def test_process_workers_use_the_interpreter_of_the_working_tree(
    own: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = (FILE.resolve().parent if own else tmp_path) / ".venv" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    for each in load_deployments(FILE, environment={}):
        command = each["job_variables"].get("command")
        wanted = own and each["work_pool_name"] == "process"
        assert command == (f"{python} -m prefect.engine" if wanted else None)


def test_containers_use_the_working_tree_of_the_image(
    deployments: dict[str, dict[str, Any]],
) -> None:
    for name, home in (("pipeline", str(ROOT)), ("pipeline-docker", "/app"),
                       ("pipeline-kubernetes", "/app")):  # fmt: skip
        (step,) = deployments[name]["pull_steps"]
        assert step["prefect.deployments.steps.set_working_directory"]["directory"] == home


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("deployments: [{name: a, entrypoint: 'flows/none.py:x'}]", "flows/FILE.py:FLOW"),
        ("deployments: [{name: a, entrypoint: 'flows/decisions.py:run_id_for'}]", "no flow"),
        ("deployments: [{name: a, entrypoint: 'flows/pipeline.py:pipeline', parameters: "
         "{parameters: {confg: x}}}]", "those of flows/pipeline.py:pipeline"),
        ("nothing: here", "expected Prefect's deployments"),
        ("deployments: [", "expected Prefect's deployments"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text(text)
    with pytest.raises(FlowError, match=said):
        load_deployments(file)


def test_files_are_links_with_mario_runs_url_and_paths_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = JobContext(JobSettings.embedded(tmp_path / "runs"))
    report = context.settings.run_dir("run-1") / "verdict.html"
    monkeypatch.delenv("MARIO_RUNS_URL", raising=False)
    links = {"report": file_link(report, context), "MLflow": "run `7` in `sqlite:///x.db`"}
    page = verdict_page("title", "v-1", ["PROMOTE"], links)
    assert f"- report: `{report.resolve()}`" in page
    assert "Set `MARIO_RUNS_URL`" in page
    assert "file://" not in page, "browsers open no file:// from an HTTP page"
    monkeypatch.setenv("MARIO_RUNS_URL", "http://127.0.0.1:8099/")
    links = {"report": file_link(report, context)}
    assert links["report"] == "[verdict.html](http://127.0.0.1:8099/run-1/verdict.html)"
    assert "MARIO_RUNS_URL" not in verdict_page("title", "v-1", [], links)
