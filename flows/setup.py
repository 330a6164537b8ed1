"""Brings a Prefect server in line with the documents of pools, automations and deployments.

What is as wanted is left alone, so that doing it twice changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import PrefectHTTPStatusError

from flows.automations import SILENCE_SECONDS, automations
from flows.decisions import differences
from flows.deployments import load_deployments
from flows.pools import DATABASE_BLOCK, POOL_TYPES, pool, queues
from mario.errors import FlowError

Document = dict[str, Any]
What = Literal["created", "changed", "unchanged", "waits"]

WEBHOOK_BLOCK = "mario-notifications"
#: The deployment that a promotion starts.
NIGHTLY = ("nightly", "nightly")


@dataclass(frozen=True)
class Change:
    """One thing on the server, and what was done to it.

    Attributes:
        kind: pool, queue, block, automation, deployment.
        name: its name.
        what: created, changed, unchanged; waits, where something else has to be there first.
        detail: which parts differed.
    """

    kind: str
    name: str
    what: What
    detail: str = ""

    def line(self) -> str:
        """It in one line."""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.what:<9} {self.kind:<10} {self.name}{detail}"


class Server:
    """The few calls of Prefect's API that are needed here, with errors that say what to do."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self._client = client

    @classmethod
    @contextmanager
    def connect(cls) -> Iterator[Server]:
        """Open a connection to the server of PREFECT_API_URL.

        Raises:
            FlowError: none is named, or it does not answer.
        """
        if not os.environ.get("PREFECT_API_URL"):
            raise FlowError(
                "got no PREFECT_API_URL; expected the address of a Prefect server, such as "
                "http://127.0.0.1:4200/api; start one with `prefect server start`"
            )
        with get_client(sync_client=True) as client:
            yield cls(client)

    def call(self, method: Any, path: str, body: Any = None) -> Any:
        """Ask, and return the answer's JSON; None where there is no such thing.

        Raises:
            FlowError: the server refuses, or is away.
        """
        route: Any = path
        try:
            answer = self._client.request(method, route, json=body)
        except PrefectHTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND and method == "GET":
                return None
            raise FlowError(
                f"the Prefect server refused {method} {path} with {error.response.status_code}: "
                f"{error.response.text[:500]}; expected it to take it; is it of this version?"
            ) from None
        except httpx.HTTPError as error:
            raise FlowError(
                f"the Prefect server at {os.environ.get('PREFECT_API_URL')} does not answer "
                f"({error}); expected it to be up; start it, or correct PREFECT_API_URL"
            ) from None
        return answer.json() if answer.content else None


def set_up(
    server: Server,
    *,
    pools: Iterable[str] = POOL_TYPES,
    webhook_url: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Change]:
    """Create or mend pools, queues, limits, blocks and automations.

    Args:
        server: which server.
        pools: kinds of work pool.
        webhook_url: where notifications go; None leaves it as it is.
        environment: where addresses are read from; None: this process's.

    Raises:
        FlowError: see `Server`.
    """
    known = os.environ if environment is None else environment
    changes: list[Change] = []
    for kind in pools:
        changes.append(_apply_pool(server, pool(kind, known)))
        changes += [_apply_queue(server, kind, queue) for queue in queues(known)]
    if database_url := known.get("MARIO_DATABASE_URL"):
        changes.append(_apply_block(server, "secret", DATABASE_BLOCK, {"value": database_url}))
    if webhook_url:
        values = {
            "method": "POST",
            "url": webhook_url,
            "headers": {"Content-Type": "application/json"},
        }
        changes.append(_apply_block(server, "webhook", WEBHOOK_BLOCK, values))
    return [*changes, *apply_automations(server)]


def deploy(
    server: Server, file: Path, *, only: Iterable[str] = (), root: Path | None = None
) -> list[Change]:
    """Create or mend the deployments of `prefect.yaml`, and the automations that need them.

    Args:
        server: which server.
        file: `prefect.yaml`.
        only: names of deployments; none means all whose work pool is there.
        root: the working tree of process workers.

    Raises:
        FlowError, ConfigError: see `Server` and `load_deployments`.
    """
    wanted = load_deployments(file, root=root)
    names = set(only)
    if unknown := names - {each["name"] for each in wanted}:
        raise FlowError(
            f"got deployment {min(unknown)!r}; expected one of "
            f"{', '.join(sorted(each['name'] for each in wanted))}"
        )
    changes = []
    for document in wanted:
        if names and document["name"] not in names:
            continue
        if server.call("GET", f"/work_pools/{document['work_pool_name']}") is None:
            changes.append(
                Change("deployment", _full_name(document), "waits",
                       f"for pool {document['work_pool_name']}: mario flows setup")
            )  # fmt: skip
            continue
        changes.append(_apply_deployment(server, document))
    return [*changes, *apply_automations(server)]


def resume(server: Server, name: str) -> Change:
    """Let a paused deployment's schedules run again, as a person does after a collapse.

    Prefect's own command line has no word for it: `prefect deployment schedule resume` switches a
    schedule on and leaves the deployment paused.

    Args:
        server: which server.
        name: the deployment's name, as in `prefect.yaml`.

    Raises:
        FlowError: there is no such deployment.
    """
    found = {each["name"]: each for each in _all(server, "/deployments/filter")}
    if name not in found:
        raise FlowError(
            f"got deployment {name!r}; expected one of {', '.join(sorted(found)) or 'none yet'}; "
            "see `mario flows status`"
        )
    if not found[name]["paused"]:
        return Change("deployment", name, "unchanged")
    server.call("POST", f"/deployments/{found[name]['id']}/resume_deployment")
    return Change("deployment", name, "changed", "paused")


def apply_automations(server: Server) -> list[Change]:
    """Create or mend the automations; those whose deployment is not there yet wait.

    MARIO_SILENCE_SECONDS is how long a flow run may be silent, where the default is not meant.
    """
    block = _block(server, "webhook", WEBHOOK_BLOCK)
    nightly = server.call("GET", f"/deployments/name/{NIGHTLY[0]}/{NIGHTLY[1]}")
    existing = {each["name"]: each for each in _all(server, "/automations/filter")}
    documents = automations(
        webhook_id=None if block is None else block["id"],
        nightly_id=None if nightly is None else nightly["id"],
        silence_seconds=float(os.environ.get("MARIO_SILENCE_SECONDS") or SILENCE_SECONDS),
    )
    changes = []
    for document in documents:
        found = existing.get(document["name"])
        wanted = _normal(document)
        if found is None:
            server.call("POST", "/automations/", wanted)
            changes.append(Change("automation", document["name"], "created"))
            continue
        # Whoever disabled one by hand finds it disabled after the next set-up too.
        wanted["enabled"] = found["enabled"]
        different = differences(wanted, _normal(found))
        if different:
            server.call("PUT", f"/automations/{found['id']}", wanted)
        changes.append(_changed("automation", document["name"], different))
    if nightly is None:
        changes.append(
            Change("automation", "mario: a promotion is looked at again", "waits",
                   "for deployment nightly: mario flows deploy")
        )  # fmt: skip
    return changes


def _normal(document: Document) -> Document:
    """An automation as Prefect writes it, so that defaults are no differences."""
    core = AutomationCore.model_validate(
        {name: document[name] for name in ("name", "description", "enabled", "trigger", "actions")}
    )
    normal = core.model_dump(mode="json", exclude={"owner_resource"})
    for trigger in (normal["trigger"],):
        for name in ("after", "expect", "for_each"):
            trigger[name] = sorted(trigger[name])
        trigger.pop("id", None)
    return normal


def _apply_pool(server: Server, document: Document) -> Change:
    name = document["name"]
    found = server.call("GET", f"/work_pools/{name}")
    if found is None:
        server.call("POST", "/work_pools/", document)
        return Change("pool", name, "created")
    if found["type"] != document["type"]:
        raise FlowError(
            f"got a work pool {name!r} of type {found['type']!r}; expected {document['type']!r}; "
            f"remove it (prefect work-pool delete {name}) or rename it"
        )
    different = differences(document, found)
    if different:
        parts = {part: document[part] for part in different}
        server.call("PATCH", f"/work_pools/{name}", parts)
    return _changed("pool", name, different)


def _apply_queue(server: Server, pool_name: str, document: Document) -> Change:
    name = f"{pool_name}/{document['name']}"
    path = f"/work_pools/{pool_name}/queues"
    found = server.call("GET", f"{path}/{document['name']}")
    if found is None:
        server.call("POST", f"{path}/", document)
        return Change("queue", name, "created")
    different = differences(document, found)
    if different:
        server.call("PATCH", f"{path}/{document['name']}", {n: document[n] for n in different})
    return _changed("queue", name, different)


def _block(server: Server, kind: str, name: str) -> Document | None:
    found = server.call(
        "GET", f"/block_types/slug/{kind}/block_documents/name/{name}?include_secrets=true"
    )
    return None if found is None else dict(found)


def _apply_block(server: Server, kind: str, name: str, values: Document) -> Change:
    block_type = server.call("GET", f"/block_types/slug/{kind}")
    if block_type is None:
        raise FlowError(
            f"the Prefect server knows no block type {kind!r}; expected its own ones; start it "
            "with PREFECT_API_BLOCKS_REGISTER_ON_START=true"
        )
    found = _block(server, kind, name)
    if found is not None:
        different = differences(values, found["data"])
        if different:
            server.call(
                "PATCH", f"/block_documents/{found['id']}",
                {"data": values, "merge_existing_data": True},
            )  # fmt: skip
        return _changed("block", f"{kind}/{name}", different)
    schemas = server.call(
        "POST", "/block_schemas/filter",
        {"block_schemas": {"block_type_id": {"any_": [block_type["id"]]}}},
    )  # fmt: skip
    server.call(
        "POST", "/block_documents/",
        {"name": name, "data": values, "block_type_id": block_type["id"],
         "block_schema_id": schemas[0]["id"]},
    )  # fmt: skip
    return Change("block", f"{kind}/{name}", "created")


def _apply_deployment(server: Server, document: Document) -> Change:
    name = _full_name(document)
    wanted = {key: value for key, value in document.items() if key != "flow_name"}
    found = server.call("GET", f"/deployments/name/{name}")
    if found is None:
        flow = server.call("POST", "/flows/", {"name": document["flow_name"]})
        server.call("POST", "/deployments/", {**wanted, "flow_id": flow["id"]})
        return Change("deployment", name, "created")
    schedules = {each.get("slug"): each for each in found["schedules"]}
    found["schedules"] = [
        schedules.get(each["slug"], {}) for each in wanted["schedules"]
    ] + [each for slug, each in schedules.items() if slug not in
         {wish["slug"] for wish in wanted["schedules"]}]  # fmt: skip
    # A schedule that a person or a collapse switched off stays off.
    wishes = [
        {**each, "active": schedules.get(each["slug"], each).get("active", each["active"])}
        for each in wanted["schedules"]
    ]
    wanted["schedules"] = wishes
    found["tags"] = sorted(found["tags"])
    different = differences(wanted, found)
    if different:
        changed = {key: value for key, value in wanted.items() if key != "name"}
        server.call("PATCH", f"/deployments/{found['id']}", changed)
    return _changed("deployment", name, different)


def _changed(kind: str, name: str, different: tuple[str, ...]) -> Change:
    if different:
        return Change(kind, name, "changed", ", ".join(different))
    return Change(kind, name, "unchanged")


def _full_name(document: Document) -> str:
    return f"{document['flow_name']}/{document['name']}"


def _all(server: Server, path: str) -> list[Document]:
    found: list[Document] = []
    while page := server.call("POST", path, {"limit": 100, "offset": len(found)}):
        found += page
        if len(page) < 100:
            break
    return found


def summary(changes: Iterable[Change]) -> str:
    """What was done, one line each, and the sum in the last."""
    listed = list(changes)
    counts = {what: sum(each.what == what for each in listed) for what in
              ("created", "changed", "unchanged", "waits")}  # fmt: skip
    lines = [change.line() for change in listed if change.what != "unchanged"]
    if not counts["created"] and not counts["changed"]:
        lines.append(f"nothing to change: {counts['unchanged']} are as they should be")
    else:
        lines.append(
            f"{counts['created']} created, {counts['changed']} changed, "
            f"{counts['unchanged']} unchanged"
        )
    return "\n".join(lines)
