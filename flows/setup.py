"""Create or update pools, automations and deployments on a Prefect server.

What is up to date is left alone, so that a second call changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from prefect.events.schemas.automations import AutomationCore

from flows.automations import (
    BEGIN_SECONDS,
    NIGHTLY,
    PREFIX,
    SECOND_LOOK,
    SHORTEST_SECONDS,
    SILENCE_SECONDS,
    automations,
)
from flows.decisions import differences
from flows.deployments import load_deployments
from flows.prefect_api import TAG, Document, Server, is_ours, our_deployments
from flows.work_pools import DATABASE_BLOCK, POOL_TYPES, pool, queues
from mario.errors import FlowError

Outcome = Literal["created", "changed", "removed", "unchanged", "waits"]

WEBHOOK_BLOCK = "mario-notifications"


@dataclass(frozen=True)
class Change:
    """What was done to one object on the server.

    Attributes:
        kind: pool, queue, block, automation or deployment.
        name: the object's name.
        outcome: `waits` means that another object must exist first.
        detail: the parts that differed.
    """

    kind: str
    name: str
    outcome: Outcome
    detail: str = ""

    def line(self) -> str:
        """Describe the change in one line."""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.outcome:<9} {self.kind:<10} {self.name}{detail}"


def set_up(
    server: Server,
    *,
    pools: Iterable[str] = POOL_TYPES,
    webhook_url: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Change]:
    """Create or update pools, queues, limits, blocks and automations.

    Args:
        server: the server.
        pools: kinds of work pool.
        webhook_url: where notifications are posted; None: as before.
        environment: names addresses; None: this process's environment.

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
    """Create or update the deployments of `prefect.yaml`, and the automations that need them.

    Args:
        server: the server.
        file: `prefect.yaml`.
        only: names of deployments; empty: all whose work pool exists.
        root: the working tree of process workers.

    Raises:
        FlowError, ConfigError: see `Server` and `load_deployments`; or another project has a
            deployment of the same name.
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
    """Resume a paused deployment, such as one that a collapse paused.

    Prefect has no such command: `prefect deployment schedule resume` switches a schedule on and
    leaves the deployment paused.

    Args:
        server: the server; deployments of other projects are ignored.
        name: the deployment's name, as in `prefect.yaml`, or `flow/name`.

    Raises:
        FlowError: there is no such deployment, or more than one.
    """
    ours = our_deployments(server)
    found = [full for full, each in ours.items() if name in (full, each["name"])]
    if not found:
        raise FlowError(
            f"got deployment {name!r}; expected one of {', '.join(sorted(ours)) or 'none yet'}; "
            "see `mario flows status`"
        )
    if len(found) > 1:
        raise FlowError(
            f"got deployment {name!r}, which several flows have; expected one of "
            f"{', '.join(sorted(found))}; name the flow, too"
        )
    deployment = ours[found[0]]
    if not deployment["paused"]:
        return Change("deployment", name, "unchanged")
    server.call("POST", f"/deployments/{deployment['id']}/resume_deployment")
    return Change("deployment", name, "changed", "paused")


def apply_automations(server: Server) -> list[Change]:
    """Create or update the automations, and remove those of earlier versions.

    MARIO_SILENCE_SECONDS and MARIO_BEGIN_SECONDS override how long a flow run may send no heartbeat
    and how long it may take to begin.

    Raises:
        FlowError: see `Server`; or one of the two variables is not a valid time.
    """
    block = _block(server, "webhook", WEBHOOK_BLOCK)
    deployments = our_deployments(server)
    documents = automations(
        deployments,
        webhook_id=None if block is None else block["id"],
        silence_seconds=_seconds_from_environment("MARIO_SILENCE_SECONDS", SILENCE_SECONDS),
        begin_seconds=_seconds_from_environment("MARIO_BEGIN_SECONDS", BEGIN_SECONDS),
    )
    existing: dict[str, list[Document]] = {}
    for each in server.all("/automations/filter"):
        existing.setdefault(each["name"], []).append(each)
    changes = []
    for document in documents:
        same = existing.pop(document["name"], [])
        wanted = _normalised(document)
        if not same:
            server.call("POST", "/automations/", wanted)
            changes.append(Change("automation", document["name"], "created"))
            continue
        # Prefect allows two of one name, as from two concurrent set-ups, and runs both.
        found, *others = same
        changes += [_remove_automation(server, other) for other in others]
        # One that was disabled by hand stays disabled.
        wanted["enabled"] = found["enabled"]
        different = differences(wanted, _normalised(found))
        if different:
            server.call("PUT", f"/automations/{found['id']}", wanted)
        changes.append(_changed("automation", document["name"], different))
    for name, left in sorted(existing.items()):
        if name.startswith(PREFIX):
            changes += [_remove_automation(server, each) for each in left]
    if NIGHTLY not in deployments:
        changes.append(
            Change("automation", f"{PREFIX}{SECOND_LOOK}", "waits",
                   "for deployment nightly: mario flows deploy")
        )  # fmt: skip
    return changes


def _remove_automation(server: Server, found: Document) -> Change:
    server.call("DELETE", f"/automations/{found['id']}")
    return Change("automation", found["name"], "removed")


def _seconds_from_environment(variable: str, default: float) -> float:
    """Read a time from an environment variable."""
    given = os.environ.get(variable) or str(default)
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not SHORTEST_SECONDS <= seconds < float("inf"):
        raise FlowError(
            f"got {variable}={given}; expected seconds, at least {SHORTEST_SECONDS:.0f}"
        )
    return seconds


def _normalised(document: Document) -> Document:
    """Write an automation as Prefect does, so that defaults do not count as differences."""
    core = AutomationCore.model_validate(
        {name: document[name] for name in ("name", "description", "enabled", "trigger", "actions")}
    )
    normal = core.model_dump(mode="json", exclude={"owner_resource"})
    trigger = normal["trigger"]
    trigger |= {name: sorted(trigger[name]) for name in ("after", "expect", "for_each")}
    trigger.pop("id", None)
    return normal


def _apply_pool(server: Server, document: Document) -> Change:
    name = document["name"]
    found = server.call("GET", f"/work_pools/{name}")
    if found is not None and found["type"] != document["type"]:
        raise FlowError(
            f"got a work pool {name!r} of type {found['type']!r}; expected {document['type']!r}; "
            f"remove it (prefect work-pool delete {name}) or rename it"
        )
    return _create_or_update(server, "pool", name, "/work_pools/", document, found)


def _apply_queue(server: Server, pool_name: str, document: Document) -> Change:
    path = f"/work_pools/{pool_name}/queues/"
    found = server.call("GET", f"{path}{document['name']}")
    name = f"{pool_name}/{document['name']}"
    return _create_or_update(server, "queue", name, path, document, found)


def _create_or_update(
    server: Server, kind: str, name: str, path: str, document: Document, found: Document | None
) -> Change:
    """Create what was not found at `path`, or update the parts that differ."""
    if found is None:
        server.call("POST", path, document)
        return Change(kind, name, "created")
    different = differences(document, found)
    if different:
        parts = {part: document[part] for part in different}
        server.call("PATCH", f"{path}{document['name']}", parts)
    return _changed(kind, name, different)


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
    if not is_ours(found):
        raise FlowError(
            f"got a deployment {name} from {found.get('entrypoint') or 'elsewhere'} with the tags "
            f"{', '.join(found['tags']) or 'none'}, of another project; expected one with the tag "
            f"{TAG}, or none; rename one of them"
        )
    wanted["schedules"], kept, stale = _schedules(document["schedules"], found["schedules"])
    found["schedules"], found["tags"] = kept, sorted(found["tags"])
    # An update of a deployment changes and adds schedules, but removes none.
    for each in stale:
        server.call("DELETE", f"/deployments/{found['id']}/schedules/{each['id']}")
    different = differences(wanted, found)
    if different:
        changed = {key: value for key, value in wanted.items() if key != "name"}
        server.call("PATCH", f"/deployments/{found['id']}", changed)
    if stale:
        different = tuple(sorted({*different, "schedules"}))
    return _changed("deployment", name, different)


def _schedules(
    wanted: list[Document], found: list[Document]
) -> tuple[list[Document], list[Document], list[Document]]:
    """Compare a deployment's schedules in the file and on the server by their slugs.

    A schedule is active if it is active in both the file and the server: one that a person switched
    off in Prefect's page stays off, and so does one that the file switches off.

    Args:
        wanted: the file's.
        found: the server's.

    Returns:
        The schedules to apply; the server's of the same slugs, in the same order ({} if missing);
        and the server's to delete.
    """
    known = {each["slug"]: each for each in found if each.get("slug")}
    wishes = [
        {**each, "active": each["active"] and known.get(each["slug"], each)["active"]}
        for each in wanted
    ]
    slugs = {each["slug"] for each in wanted}
    stale = [each for each in found if each.get("slug") not in slugs]
    return wishes, [known.get(each["slug"], {}) for each in wanted], stale


def _changed(kind: str, name: str, different: tuple[str, ...]) -> Change:
    if different:
        return Change(kind, name, "changed", ", ".join(different))
    return Change(kind, name, "unchanged")


def _full_name(document: Document) -> str:
    return f"{document['flow_name']}/{document['name']}"


def summary(changes: Iterable[Change]) -> str:
    """Describe changes, one per line, and count them in the last line."""
    listed = list(changes)
    counts = {
        outcome: sum(each.outcome == outcome for each in listed) for outcome in get_args(Outcome)
    }
    lines = [change.line() for change in listed if change.outcome != "unchanged"]
    if not counts["created"] + counts["changed"] + counts["removed"]:
        lines.append(f"nothing to change: {counts['unchanged']} are up to date")
    else:
        lines.append(
            f"{counts['created']} created, {counts['changed']} changed, "
            f"{counts['removed']} removed, {counts['unchanged']} unchanged"
        )
    return "\n".join(lines)
