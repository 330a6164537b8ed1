"""Test the messages about refusals, and which deployments belong to this project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.deployments import deployment_names, load_deployments
from flows.prefect_api import TAG, is_ours, refusal
from flows.setup import _schedules
from mario.errors import FlowError
from tests.support.paths import ROOT

URL = "postgresql+psycopg2://mario:correct-horse-battery@db.example/mario"
BLOCK = {"name": "mario-database-url", "data": {"value": URL}}


def answer(status: int, content: Any) -> httpx.Response:
    return httpx.Response(status, json=content)


def test_a_refusal_names_fields_and_reasons_without_the_request() -> None:
    """Prefect's `prefect.server.api.server.validation_exception_handler` writes such answers."""
    said = refusal(
        answer(
            422,
            {
                "exception_message": "Invalid request received.",
                "exception_detail": [
                    {
                        "type": "string_pattern_mismatch",
                        "loc": ["body", "name"],
                        "msg": "String should match pattern '^[a-z]+$'",
                        "input": URL,
                        "ctx": {"given": URL},
                    },
                    {"type": "missing", "loc": ["body", "block_type_id"], "msg": "Field required"},
                ],
                "request_body": BLOCK,
            },
        ),
        BLOCK,
    )
    assert said == (
        "body.name: String should match pattern '^[a-z]+$'; body.block_type_id: Field required"
    )


@pytest.mark.parametrize(
    "reason",
    [
        f"Value error, got {URL!r}",
        f"1 validation error\n  [type=x, input_value={URL[:20]!r}...{URL[-20:]!r}, input_type=str]",
        f"block {json.dumps(BLOCK)} is not one",
        'got "it\'s\\" secret"',
    ],
)
def test_values_quoted_in_a_reason_are_redacted(reason: str) -> None:
    sent = {"name": "a", "data": {"value": URL, "other": ["it's\" secret"]}}
    for content in (
        {"detail": reason},
        {"exception_message": reason},
        {"exception_detail": [{"loc": ["body", "data"], "msg": reason}]},
    ):
        said = refusal(answer(409, content), sent)
        assert said
        for part in ("correct-horse", "battery", "secret", "db.example"):
            assert part not in said, said


def test_names_in_a_reason_are_kept() -> None:
    sent = {"name": "weekly", "work_pool_name": "process", "parameters": {"task": "9-9"}}
    said = refusal(answer(404, {"detail": 'Work pool "process" not found.'}), sent)
    assert said == 'Work pool "process" not found.'
    assert refusal(httpx.Response(502, text=f"<html>{URL}</html>"), sent) == "Bad Gateway"
    assert refusal(answer(500, {"exception_message": "Internal Server Error"})) == (
        "Internal Server Error"
    )
    assert refusal(answer(422, {"exception_detail": ["odd"]}), sent) == "no reason given"
    assert len(refusal(answer(409, {"detail": "long " * 1_000}), sent)) <= 500


def test_ours_are_deployments_with_our_tag_and_folder() -> None:
    ours = {"tags": ["git:main", TAG], "entrypoint": "flows/pipeline.py:pipeline"}
    assert is_ours(ours)
    assert not is_ours({**ours, "tags": ["git:main"]})
    assert not is_ours({**ours, "entrypoint": "src/pipeline.py:pipeline"})
    assert not is_ours({**ours, "entrypoint": None})


def test_deployment_names_are_flow_and_name() -> None:
    found = deployment_names(ROOT / "prefect.yaml")
    assert {"pipeline/weekly-1-1", "nightly/nightly", "evaluate-on-dask/evaluate-on-dask"} <= found
    loaded = load_deployments(ROOT / "prefect.yaml", environment={"MARIO_GIT_COMMIT": "v1"})
    assert found == {f"{each['flow_name']}/{each['name']}" for each in loaded}
    with pytest.raises(FlowError, match="expected Prefect's deployments"):
        deployment_names(ROOT / "no-such.yaml")


@pytest.mark.parametrize(
    ("schedules", "said"),
    [
        ('[{cron: "0 3 * * *"}]', "expected slug, cron"),
        ("[{slug: nights}]", "expected slug, cron"),
        ("[{slug: nights, interval: 60}]", "expected slug, cron"),
        ('[{slug: nights, cron: "0 3 * * *", zone: UTC}]', "expected slug, cron"),
        ('[{slug: nights, cron: "0 3 * * *", active: "false"}]', "true or false"),
        ("[nights]", "expected slug, cron"),
        ('[{slug: a, cron: "0 3 * * *"}, {slug: a, cron: "0 4 * * *"}]', "two schedules with the"),
    ],
)
def test_an_invalid_schedule_is_refused(schedules: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text(
        "deployments:\n"
        f"  - {{name: a, entrypoint: 'flows/nightly.py:nightly', schedules: {schedules}}}\n"
    )
    with pytest.raises(FlowError, match=f"deployment a: .*{said}"):
        load_deployments(file)


def test_every_deployment_gets_the_tag_of_the_project(tmp_path: Path) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text("deployments: [{name: a, entrypoint: 'flows/nightly.py:nightly'}]")
    (made,) = load_deployments(file)
    assert TAG in made["tags"]
    assert made["schedules"] == []


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("on_server", [True, False, None])
def test_a_schedule_is_active_if_file_and_server_have_it_active(
    *, in_file: bool, on_server: bool | None
) -> None:
    wanted = [{"slug": "nights", "active": in_file, "schedule": {"cron": "0 4 * * *"}}]
    found = [{"slug": "nights", "active": on_server, "schedule": {"cron": "0 3 * * *"}, "id": "1"}]
    other = [{"slug": "days", "active": True, "id": "2"}, {"slug": None, "active": True, "id": "3"}]
    there = [] if on_server is None else found
    wishes, kept, stale = _schedules(wanted, [*other, *there])
    assert [each["active"] for each in wishes] == [in_file and on_server is not False]
    assert wishes[0]["schedule"] == {"cron": "0 4 * * *"}
    assert kept == (there or [{}])
    assert [each["id"] for each in stale] == ["2", "3"], "the file no longer has them"
