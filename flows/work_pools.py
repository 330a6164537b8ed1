"""Work pools as documents: how a flow run becomes a process, a container or a Kubernetes Job.

Each kind's template is its worker's own, with what training needs put in: GPUs, shared memory,
volumes, a pull policy, the hardening of `docker/compose.yaml` and `k8s/base/training-job.yaml`.
What differs between deployments is a variable, with a description that Prefect's page shows.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

from flows.container_entrypoint import ENTRY_COMMAND, GRACE_SECONDS, WHILE_IT_STARTS

Document = dict[str, Any]

#: Sign of life of a flow run; Prefect takes nothing below 30 s.
HEARTBEAT_SECONDS = 30
#: The secret block with the store's address: it holds a password, so it is in no template.
DATABASE_BLOCK = "mario-database-url"
#: Where a container finds its working tree (docker/trainer.Dockerfile).
IMAGE_HOME = "/app"
#: Where a pod shows its training's metrics, as that of `k8s/base/training-job.yaml` does.
METRICS_PORT = 9107

_DESCRIPTIONS = {
    "process": "Flow runs as processes of the worker's machine.",
    "docker": "Flow runs in containers of the training image.",
    "kubernetes": "Flow runs as Jobs in the cluster.",
}
POOL_TYPES = tuple(_DESCRIPTIONS)


def run_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What every flow run gets: a sign of life, and patience with a server that restarts."""
    fixed = {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_CLIENT_MAX_RETRIES": "10",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
    }
    passed = ("MLFLOW_TRACKING_URI", "MARIO_MLFLOW_URL", "MARIO_RUNS_URL")
    return {**fixed, **{name: environment[name] for name in passed if environment.get(name)}}


def _container_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a flow run in a container gets beside that; its home is no folder of the worker's."""
    return {
        **run_environment(environment),
        **WHILE_IT_STARTS,
        "PREFECT_HOME": "/tmp/prefect",  # noqa: S108
    }


def pool(kind: str, environment: Mapping[str, str] | None = None) -> Document:
    """The work pool of a kind, as Prefect's API takes it.

    Args:
        kind: process, docker or kubernetes.
        environment: where images, networks and addresses are read from; None: this process's.
    """
    known = os.environ if environment is None else environment
    template = {"process": _process, "docker": _docker, "kubernetes": _kubernetes}[kind](known)
    return {
        "name": kind,
        "type": kind,
        "description": _DESCRIPTIONS[kind],
        "base_job_template": template,
        # Not paused: whoever pauses a pool by hand finds it paused after the next set-up too.
        "concurrency_limit": int(known.get("MARIO_POOL_LIMIT") or _enough_for_its_queues(known)),
    }


def _enough_for_its_queues(environment: Mapping[str, str]) -> int:
    """So many flow runs that full queues fit: with less, CPU work would wait behind training."""
    return max(8, sum(int(queue["concurrency_limit"]) for queue in queues(environment)))


def queues(environment: Mapping[str, str] | None = None) -> tuple[Document, ...]:
    """The queues of every pool: one training at a time on a GPU, and nothing waits behind it.

    Each pool has queues of its own: two pools of one machine do not know of each other's runs.
    """
    known = os.environ if environment is None else environment
    return (
        {
            "name": "gpu",
            "description": "Training: as many at a time as there are GPUs.",
            "concurrency_limit": int(known.get("MARIO_GPUS") or 1),
            "priority": 1,
        },
        {
            "name": "cpu",
            "description": "Evaluation, judging and whatever else needs no GPU.",
            "concurrency_limit": int(known.get("MARIO_CPU_RUNS") or 4),
            "priority": 2,
        },
    )


def _variable(template: Document, name: str, **schema: Any) -> None:
    properties = template["variables"]["properties"]
    properties[name] = {**properties.get(name, {}), **schema}


def _process(environment: Mapping[str, str]) -> Document:
    from prefect.workers.process import ProcessWorker

    template: Document = copy.deepcopy(ProcessWorker.get_default_base_job_template())
    # The worker's own addresses hold: its machine, its environment.
    _variable(template, "env", default=run_environment({}))
    return template


def _docker(environment: Mapping[str, str]) -> Document:
    from prefect_docker.worker import DockerWorker

    template: Document = copy.deepcopy(DockerWorker.get_default_base_job_template())
    variables = _container_environment(environment)
    volumes = [environment.get("MARIO_RUNS_VOLUME") or "mario-runs:/runs"]
    if environment.get("MARIO_DATABASE_URL"):
        variables["MARIO_DATABASE_URL"] = f"{{{{ prefect.blocks.secret.{DATABASE_BLOCK} }}}}"
    network = environment.get("MARIO_DOCKER_NETWORK")
    if network:
        # Neighbours see the pages of containers on a network of their own, Prometheus among them.
        # Without one a container may have the host's network, and its page stays on 127.0.0.1.
        variables |= {"MARIO_METRICS_HOST": "0.0.0.0", "MARIO_METRICS_TARGETS": "/targets"}  # noqa: S104
        volumes.append(environment.get("MARIO_TARGETS_VOLUME") or "mario-targets:/targets")
    if address := environment.get("MARIO_DOCKER_API_URL"):
        # The worker's own is one of its machine; a container may know the server by another name.
        variables["PREFECT_API_URL"] = address
    _variable(template, "env", default=variables)
    _variable(
        template, "image", default=environment.get("MARIO_TRAINER_IMAGE") or "mario-trainer:dev"
    )
    _variable(template, "image_pull_policy", default="IfNotPresent")
    _variable(template, "networks", default=[network] if network else [])
    _variable(template, "volumes", default=volumes)
    _variable(template, "mem_limit", default="8g")
    _variable(
        template,
        "device_requests",
        title="Device requests",
        description="GPUs, in Docker's words; an empty list for none.",
        type="array",
        items={"type": "object"},
        default=[{"Driver": "nvidia", "Count": 1, "Capabilities": [["gpu"]]}],
    )
    _variable(
        template,
        "shm_size",
        title="Shared memory",
        description="Size of /dev/shm, where processes of PyTorch meet.",
        type="string",
        default="2g",
    )
    template["job_configuration"]["container_create_kwargs"] = {
        # The image's own entry point is `mario`; Prefect says what to run.
        "entrypoint": [*ENTRY_COMMAND],
        "device_requests": "{{ device_requests }}",
        "shm_size": "{{ shm_size }}",
        "init": True,
        "read_only": True,
        "tmpfs": {"/tmp": "", "/home/mario": "uid=10001,gid=10001"},  # noqa: S108
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }
    template["variables"]["properties"].pop("container_create_kwargs", None)
    return template


def _kubernetes(environment: Mapping[str, str]) -> Document:
    from prefect_kubernetes.worker import KubernetesWorker

    template: Document = copy.deepcopy(KubernetesWorker.get_default_base_job_template())
    _variable(template, "env", default=_container_environment(environment))
    _variable(template, "namespace", default="mario")
    _variable(template, "service_account_name", default="mario-training")
    _variable(
        template,
        "image",
        default=environment.get("MARIO_TRAINER_IMAGE") or "mario-trainer:0.1.0-cuda",
    )
    _variable(template, "image_pull_policy", default="IfNotPresent")
    _variable(template, "finished_job_ttl", default=86_400)
    for name, value in (
        ("cpu_request", "4"),
        ("cpu_limit", "16"),
        ("memory_request", "8Gi"),
        ("memory_limit", "24Gi"),
    ):
        _variable(template, name, default=value)
    _variable(
        template,
        "gpus",
        title="GPUs",
        description="How many nvidia.com/gpu the pod asks for.",
        type="integer",
        minimum=0,
        default=1,
    )
    _variable(
        template,
        "node_selector",
        title="Node selector",
        description="Labels of the nodes that may run it.",
        type="object",
        additionalProperties={"type": "string"},
        default={"nvidia.com/gpu.present": "true"},
    )
    _variable(
        template,
        "tolerations",
        title="Tolerations",
        description="Taints of nodes that it may run on all the same.",
        type="array",
        items={"type": "object"},
        default=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    )
    _variable(
        template,
        "runtime_class",
        title="Runtime class",
        description="RuntimeClass of the pod, such as nvidia; none: the cluster's own.",
        anyOf=[{"type": "string"}, {"type": "null"}],
        default=environment.get("MARIO_RUNTIME_CLASS") or None,
    )
    _variable(
        template,
        "shared_memory",
        title="Shared memory",
        description="Size of /dev/shm, where processes of PyTorch meet.",
        type="string",
        default="4Gi",
    )
    # Retries belong to Prefect, which resumes from the checkpoint; a second pod would start anew.
    template["variables"]["properties"].pop("backoff_limit", None)
    template["job_configuration"]["job_manifest"] = _job_manifest()
    return template


def _job_manifest() -> Document:
    """The Job of a flow run; the pod is that of `k8s/base/training-job.yaml`."""
    resources = {
        name: {
            "cpu": f"{{{{ cpu_{name[:-1]} }}}}",
            "memory": f"{{{{ memory_{name[:-1]} }}}}",
            "nvidia.com/gpu": "{{ gpus }}",
        }
        for name in ("requests", "limits")
    }
    container = {
        "name": "prefect-job",
        "image": "{{ image }}",
        "imagePullPolicy": "{{ image_pull_policy }}",
        # The image's own entry point is `mario`; Prefect says what to run.
        "command": [*ENTRY_COMMAND],
        "args": "{{ command }}",
        "envFrom": [{"configMapRef": {"name": "mario"}}],
        "env": [
            {
                "name": "MARIO_DATABASE_URL",
                "valueFrom": {"secretKeyRef": {"name": "mario-secrets", "key": "database-url"}},
            },
            {"name": "MARIO_METRICS_HOST", "value": "0.0.0.0"},  # noqa: S104
            {"name": "MARIO_METRICS_PORT", "value": str(METRICS_PORT)},
        ],
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}],
        # Ready while it trains: then its page answers and is asked for its numbers
        # (monitoring/prometheus/kubernetes.yml). No probe of its life: once it has trained, a
        # pipeline goes on without the page. Whether it lives, its signs of life say.
        "readinessProbe": {
            "httpGet": {"path": "/metrics", "port": "metrics"},
            "periodSeconds": 30,
        },
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "runs", "mountPath": "/runs"},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
            {"name": "home", "mountPath": "/home/mario"},
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
        ],
    }
    pod = {
        # The worker insists on these two here; the cluster drops what it does not know.
        "completions": 1,
        "parallelism": 1,
        "serviceAccountName": "{{ service_account_name }}",
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "runtimeClassName": "{{ runtime_class }}",
        "nodeSelector": "{{ node_selector }}",
        "tolerations": "{{ tolerations }}",
        "containers": [container],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": "mario-runs"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}},
            {"name": "home", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "shared-memory",
             "emptyDir": {"medium": "Memory", "sizeLimit": "{{ shared_memory }}"}},
        ],
    }  # fmt: skip
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "annotations": "{{ annotations }}",
            "generateName": "{{ name }}-",
            "labels": "{{ labels }}",
            "namespace": "{{ namespace }}",
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": 172_800,
            "ttlSecondsAfterFinished": "{{ finished_job_ttl }}",
            "template": {
                "metadata": {
                    # The worker names a pod after its deployment: network policies go by this one.
                    "labels": {"app.kubernetes.io/component": "training"},
                    "annotations": {
                        "prometheus.io/scrape": "true",
                        "prometheus.io/port": str(METRICS_PORT),
                        "prometheus.io/path": "/metrics",
                    },
                },
                "spec": pod,
            },
        },
    }
