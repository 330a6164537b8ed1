"""Brings a Prefect server in line with the documents of pools, automations and deployments.

What is as wanted is left alone, so that doing it twice changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

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
from flows.prefect_api import TAG, Server, is_ours, our_deployments
from flows.work_pools import DATABASE_BLOCK, POOL_TYPES, pool, queues
from mario.errors import FlowError

Document = dict[str, Any]
What = Literal["created", "changed", "removed", "unchanged", "waits"]

WEBHOOK_BLOCK = "mario-notifications"


@dataclass(frozen=True)
class Change:
    """One thing on the server, and what was done to it.

    Attributes:
        kind: pool, queue, block, automation, deployment.
        name: its name.
        what: created, changed, removed, unchanged; waits, where something else has to be there
            first.
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
        FlowError, ConfigError: see `Server` and `load_deployments`; or a deployment's name is
            taken by somebody else's.
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
        server: which server; other people's deployments on it are not looked at.
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
            f"got deployment {name!r}, which more than one flow has; expected one of "
            f"{', '.join(sorted(found))}; name the flow, too"
        )
    deployment = ours[found[0]]
    if not deployment["paused"]:
        return Change("deployment", name, "unchanged")
    server.call("POST", f"/deployments/{deployment['id']}/resume_deployment")
    return Change("deployment", name, "changed", "paused")


def apply_automations(server: Server) -> list[Change]:
    """Create or mend the automations, and remove those that are none any more.

    Those whose deployment is not there yet wait. MARIO_SILENCE_SECONDS and MARIO_BEGIN_SECONDS say
    how long a flow run may be silent and how long it may take to begin, where the defaults are not
    meant.

    Raises:
        FlowError: see `Server`; or one of these is no such time.
    """
    block = _block(server, "webhook", WEBHOOK_BLOCK)
    deployments = our_deployments(server)
    documents = automations(
        deployments,
        webhook_id=None if block is None else block["id"],
        silence_seconds=_seconds("MARIO_SILENCE_SECONDS", SILENCE_SECONDS),
        begin_seconds=_seconds("MARIO_BEGIN_SECONDS", BEGIN_SECONDS),
    )
    existing: dict[str, list[Document]] = {}
    for each in server.all("/automations/filter"):
        existing.setdefault(each["name"], []).append(each)
    changes = []
    for document in documents:
        same = existing.pop(document["name"], [])
        wanted = _normal(document)
        if not same:
            server.call("POST", "/automations/", wanted)
            changes.append(Change("automation", document["name"], "created"))
            continue
        # Prefect takes two of one name, as from two set-ups at once, and each would do its work.
        found, *others = same
        changes += [_remove_automation(server, other) for other in others]
        # Whoever disabled one by hand finds it disabled after the next set-up too.
        wanted["enabled"] = found["enabled"]
        different = differences(wanted, _normal(found))
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


def _seconds(variable: str, default: float) -> float:
    """A time that may be set from outside."""
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
    if not is_ours(found):
        raise FlowError(
            f"got a deployment {name} from {found.get('entrypoint') or 'elsewhere'} with the tags "
            f"{', '.join(found['tags']) or 'none'}; expected one with the tag {TAG}, or none: it "
            "is not this project's; rename one of them"
        )
    wanted["schedules"], kept, stale = _schedules(document["schedules"], found["schedules"])
    found["schedules"], found["tags"] = kept, sorted(found["tags"])
    # The server changes and adds schedules, and takes none away of itself.
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
    """How a deployment's schedules become those of the file, which a slug tells apart.

    One that is not in the file goes. One runs where both the file and the server have it on: what
    a person switched off in Prefect's page stays off, and so does what the file switches off.

    Args:
        wanted: the file's.
        found: the server's.

    Returns:
        What is to be there; what of it is there, in the same order ({} where it is not); and what
        is to go.
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
    """What was done, one line each, and the sum in the last."""
    listed = list(changes)
    counts = {what: sum(each.what == what for each in listed) for what in get_args(What)}
    lines = [change.line() for change in listed if change.what != "unchanged"]
    if not counts["created"] + counts["changed"] + counts["removed"]:
        lines.append(f"nothing to change: {counts['unchanged']} are as they should be")
    else:
        lines.append(
            f"{counts['created']} created, {counts['changed']} changed, "
            f"{counts['removed']} removed, {counts['unchanged']} unchanged"
        )
    return "\n".join(lines)
