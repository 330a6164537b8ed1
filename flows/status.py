"""Describe a Prefect server: pools and workers, queues, deployments, automations, last runs."""

from __future__ import annotations

from collections.abc import Collection

from flows.automations import PREFIX
from flows.prefect_api import TAG, Document, Server, our_deployments

_LAST_RUNS = 10


def status(server: Server, known: Collection[str] | None = None) -> str:
    """Describe a server as `mario flows status` prints it.

    Args:
        server: the server; deployments, automations and runs of others on it are left out.
        known: the deployments of `prefect.yaml` as `flow/name`; None: there is no such file.

    Raises:
        FlowError: see `Server`.
    """
    lines = ["pools"]
    for pool in server.all("/work_pools/filter"):
        lines.append(_pool(server, pool))
        queues = server.call("POST", f"/work_pools/{pool['name']}/queues/filter", {})
        lines += [_queue(queue) for queue in sorted(queues, key=lambda each: each["priority"] or 0)]
    lines.append("deployments" if known is not None else "deployments (no prefect.yaml to compare)")
    deployments = our_deployments(server)
    for name, each in sorted(deployments.items()):
        lines.append(_deployment(name, each))
        if known is not None and name not in known:
            lines.append(
                "    not in prefect.yaml, but still active; to remove it: "
                f"prefect deployment delete {name}"
            )
    lines.append("automations")
    lines += [
        f"  {'on ' if each['enabled'] else 'OFF'} {each['name']}"
        for each in sorted(server.all("/automations/filter"), key=lambda each: each["name"])
        if each["name"].startswith(PREFIX)
    ]
    lines.append("last runs")
    newest = {"sort": "EXPECTED_START_TIME_DESC", "limit": _LAST_RUNS}
    runs = server.call(
        "POST", "/flow_runs/filter", {"flow_runs": {"tags": {"all_": [TAG]}}, **newest}
    )
    lines += [_run(each) for each in runs] or ["  none yet"]
    return "\n".join(lines)


def _pool(server: Server, pool: Document) -> str:
    workers = server.call("POST", f"/work_pools/{pool['name']}/workers/filter", {})
    online = sum(worker.get("status") == "ONLINE" for worker in workers)
    limit = pool.get("concurrency_limit")
    return (
        f"  {pool['name']} ({pool['type']}): {online} workers online"
        + (f", at most {limit} runs" if limit is not None else "")
        + (", PAUSED" if pool.get("is_paused") else "")
    )


def _queue(queue: Document) -> str:
    limit = queue.get("concurrency_limit")
    return (
        f"    queue {queue['name']}"
        + (f": at most {limit} runs" if limit is not None else ": no limit")
        + (", PAUSED" if queue.get("is_paused") else "")
    )


def _deployment(name: str, deployment: Document) -> str:
    schedules = [
        f"{each['schedule'].get('cron', '?')} {each['schedule'].get('timezone') or 'UTC'}"
        + ("" if each["active"] else " (off)")
        for each in deployment["schedules"]
    ]
    where = f"{deployment['work_pool_name']}/{deployment['work_queue_name']}"
    return (
        f"  {name} at {deployment.get('version') or '-'} on {where}"
        + (f", {'; '.join(schedules)}" if schedules else "")
        + (", PAUSED" if deployment.get("paused") else "")
    )


def _run(run: Document) -> str:
    state = run.get("state") or {}
    message = " ".join((state.get("message") or "").split())
    return f"  {run['name']}: {state.get('name', '?')}" + (f": {message[:120]}" if message else "")
