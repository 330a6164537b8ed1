"""A fake Kubernetes API server for Prefect's worker, which enforces the rules of a Role.

It runs nothing: a test sets the state of Jobs and pods. Requests that the Role does not allow are
refused as in a cluster, and recorded.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
import urllib.parse
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_DISCOVERY: dict[str, Any] = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {
        "kind": "APIGroupList",
        "groups": [
            {"name": group, "preferredVersion": {"version": "v1"}, "versions": [{"version": "v1"}]}
            for group in ("batch", "apiextensions.k8s.io")
        ],
    },
    "/version": {"major": "1", "minor": "32", "gitVersion": "v1.32.0"},
}
_KINDS = {
    "/api/v1": (
        ("pods", "Pod", True), ("events", "Event", True), ("namespaces", "Namespace", False),
    ),
    "/apis/batch/v1": (("jobs", "Job", True),),
    "/apis/apiextensions.k8s.io/v1": (
        ("customresourcedefinitions", "CustomResourceDefinition", False),
    ),
}  # fmt: skip
_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<part>[a-z]+))?"
)
_CREATED = "2026-01-01T00:00:00Z"


class FakeCluster:
    """An API server at `url` with one namespace of Jobs and pods."""

    def __init__(self, namespace: str, rules: Sequence[dict[str, Any]]) -> None:
        """Start the server.

        Args:
            namespace: the namespace of the Role.
            rules: the rules of the Role.
        """
        self.namespace = namespace
        self.rules = rules
        #: Verb and path of each refused request.
        self.refused: list[str] = []
        self.jobs: list[dict[str, Any]] = []
        self._changes: dict[str, list[dict[str, Any]]] = {"jobs": [], "pods": []}
        self._ended = threading.Event()
        cluster = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                cluster._answer(self, "GET")

            def do_POST(self) -> None:
                cluster._answer(self, "POST")

            def do_PATCH(self) -> None:
                cluster._answer(self, "PATCH")

            def do_DELETE(self) -> None:
                cluster._answer(self, "DELETE")

            def log_message(self, *_: Any) -> None:
                """Log nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Stop the server and all watches."""
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def write_kubeconfig(self, file: Path) -> Path:
        """Write a kubeconfig file for this server."""
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {"token": "no-secret"}}],
            "contexts": [{"name": "test", "context": {
                "cluster": "test", "user": "test", "namespace": self.namespace}}],
        }  # fmt: skip
        file.write_text(json.dumps(content))
        return file

    def wait_for_job(self, seconds: float = 120) -> dict[str, Any]:
        """Wait for the first Job and return it."""
        deadline = time.monotonic() + seconds
        while not self.jobs:
            assert time.monotonic() < deadline, f"no Job was created; refused: {self.refused}"
            time.sleep(0.2)
        return self.jobs[0]

    def add_waiting_pod(self, job: dict[str, Any], reason: str, message: str) -> None:
        """Add a waiting pod to a Job."""
        name = f"{job['metadata']['name']}-pod"
        waiting = {
            "name": "prefect-job",
            "image": "",
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": {"waiting": {"reason": reason, "message": message}},
        }
        pod = {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {**job["spec"]["template"]["metadata"], **self._identity(name)},
            "spec": {"containers": []},
            "status": {"phase": "Pending", "containerStatuses": [waiting]},
        }  # fmt: skip
        self._changes["pods"].append({"type": "ADDED", "object": pod})

    def fail(self, job: dict[str, Any]) -> None:
        """Mark a Job as failed, as after its deadline."""
        job["status"] = {"failed": 1, "conditions": [{"type": "Failed", "status": "True"}]}
        self._changes["jobs"].append({"type": "MODIFIED", "object": job})

    def _identity(self, name: str) -> dict[str, Any]:
        return {"name": name, "namespace": self.namespace, "uid": str(uuid.uuid4()),
                "creationTimestamp": _CREATED, "resourceVersion": "1"}  # fmt: skip

    def allows(self, verb: str, group: str, resource: str, namespace: str | None) -> bool:
        """Whether the Role allows a request; it applies to its namespace only."""
        return namespace == self.namespace and any(
            group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
            for rule in self.rules
        )

    def _answer(self, handler: http.server.BaseHTTPRequestHandler, method: str) -> None:
        url = urllib.parse.urlsplit(handler.path)
        if method == "GET" and (found := _discovered(url.path)) is not None:
            _send(handler, 200, found)
            return
        match = _PATH.fullmatch(url.path)
        assert match, handler.path
        watched = "watch=true" in url.query.lower() or "watch=1" in url.query
        one = "get" if match["name"] else "watch" if watched else "list"
        verb = {"GET": one, "POST": "create", "PATCH": "patch", "DELETE": "delete"}[method]
        resource = match["resource"]
        asked = f"{resource}/{match['part']}" if match["part"] else resource
        if not self.allows(verb, match["group"] or "", asked, match["namespace"]):
            self.refused.append(f"{verb} {url.path}")
            _send(handler, 403, {"kind": "Status", "code": 403, "reason": "Forbidden",
                                 "message": f"cannot {verb} {asked}"})  # fmt: skip
        elif verb == "create":
            body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
            _send(handler, 201, self._create(body))
        elif verb == "watch":
            self._watch(handler, resource)
        elif verb == "get" and not match["part"]:
            _send(
                handler, 200, next(j for j in self.jobs if j["metadata"]["name"] == match["name"])
            )
        else:
            kind = {"jobs": "JobList", "pods": "PodList"}.get(resource, "List")
            items = self.jobs if resource == "jobs" else []
            version = f"{match['group']}/v1" if match["group"] else "v1"
            _send(handler, 200, {"apiVersion": version, "kind": kind, "items": items,
                                 "metadata": {"resourceVersion": "1"}})  # fmt: skip

    def _job(self, name: str) -> dict[str, Any]:
        return next(job for job in self.jobs if job["metadata"]["name"] == name)

    def _create(self, job: dict[str, Any]) -> dict[str, Any]:
        name = f"{job['metadata'].pop('generateName')}{len(self.jobs)}"
        job["metadata"] |= self._identity(name)
        job["status"] = {"active": 1}
        self.jobs.append(job)
        self._changes["jobs"].append({"type": "ADDED", "object": job})
        return job

    def _watch(self, handler: http.server.BaseHTTPRequestHandler, resource: str) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        seen, changes = 0, self._changes[resource]
        while not self._ended.wait(0.1):
            for change in changes[seen:]:
                try:
                    handler.wfile.write(json.dumps(change).encode() + b"\n")
                    handler.wfile.flush()
                except OSError:
                    return
                seen += 1


def _discovered(path: str) -> dict[str, Any] | None:
    if path in _DISCOVERY:
        found: dict[str, Any] = _DISCOVERY[path]
        return found
    if (kinds := _KINDS.get(path)) is None:
        return None
    verbs = ["create", "delete", "get", "list", "patch", "watch"]
    return {
        "kind": "APIResourceList",
        "resources": [
            {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": namespaced,
             "verbs": verbs}
            for plural, kind, namespaced in kinds
        ],
    }  # fmt: skip


def _send(handler: http.server.BaseHTTPRequestHandler, status: int, content: Any) -> None:
    body = json.dumps(content).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
