"""How a Prefect server stands: pools and workers, queues, deployments, automations, last runs."""

from __future__ import annotations

from typing import Any

from flows.automations import TAG
from flows.setup import Server

Document = dict[str, Any]

_LAST_RUNS = 10


def status(server: Server) -> str:
    """Describe the server in lines, as `mario flows status` prints them."""
    lines = ["pools"]
    for pool in server.call("POST", "/work_pools/filter", {}):
        lines.append(_pool(server, pool))
        queues = server.call("POST", f"/work_pools/{pool['name']}/queues/filter", {})
        lines += [_queue(queue) for queue in sorted(queues, key=lambda each: each["priority"] or 0)]
    lines.append("deployments")
    deployments = server.call(
        "POST", "/deployments/filter", {"deployments": {"tags": {"all_": [TAG]}}, "limit": 200}
    )
    lines += [_deployment(each) for each in sorted(deployments, key=lambda each: each["name"])]
    lines.append("automations")
    found = server.call("POST", "/automations/filter", {"limit": 200})
    lines += [
        f"  {'on ' if each['enabled'] else 'OFF'} {each['name']}"
        for each in sorted(found, key=lambda each: each["name"])
    ]
    lines.append("last runs")
    runs = server.call(
        "POST",
        "/flow_runs/filter",
        {
            "flow_runs": {"tags": {"all_": [TAG]}},
            "sort": "EXPECTED_START_TIME_DESC",
            "limit": _LAST_RUNS,
        },
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


def _deployment(deployment: Document) -> str:
    schedules = [
        f"{each['schedule'].get('cron', '?')} {each['schedule'].get('timezone') or 'UTC'}"
        + ("" if each["active"] else " (off)")
        for each in deployment["schedules"]
    ]
    where = f"{deployment['work_pool_name']}/{deployment['work_queue_name']}"
    return (
        f"  {deployment['name']} at {deployment.get('version') or '-'} on {where}"
        + (f", {'; '.join(schedules)}" if schedules else "")
        + (", PAUSED" if deployment.get("paused") else "")
    )


def _run(run: Document) -> str:
    state = run.get("state") or {}
    message = " ".join((state.get("message") or "").split())
    return f"  {run['name']}: {state.get('name', '?')}" + (f": {message[:120]}" if message else "")
