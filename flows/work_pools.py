"""Define the work pools: how a flow run becomes a process, a container or a Kubernetes Job.

A pool's base job template is the default of its worker type, with GPUs, shared memory, volumes, a
pull policy, and the hardening of `docker/compose.yaml` and `k8s/base/training-job.yaml` added.
What differs between deployments is a job variable; Prefect's page shows its description.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

from flows.container_entrypoint import ENTRY_COMMAND, GRACE_SECONDS, SIGTERM_ENVIRONMENT
from flows.prefect_api import Document

#: Interval of a flow run's heartbeats, in s; Prefect's minimum is 30.
HEARTBEAT_SECONDS = 30
#: The secret block with the store's URL. The URL has a password, so templates only refer to it.
DATABASE_BLOCK = "mario-database-url"
#: The working tree inside the training image (docker/trainer.Dockerfile).
IMAGE_HOME = "/app"
#: The port of a pod's metrics page, as in `k8s/base/training-job.yaml`.
METRICS_PORT = 9107

_DESCRIPTIONS = {
    "process": "Flow runs as processes of the worker's machine.",
    "docker": "Flow runs in containers of the training image.",
    "kubernetes": "Flow runs as Jobs in the cluster.",
}
POOL_TYPES = tuple(_DESCRIPTIONS)


def run_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment of every flow run: heartbeats, and retries while the server restarts."""
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
    """Environment of a flow run in a container, where PREFECT_HOME is not the worker's."""
    return {
        **run_environment(environment),
        **SIGTERM_ENVIRONMENT,
        "PREFECT_HOME": "/tmp/prefect",  # noqa: S108
    }


def pool(kind: str, environment: Mapping[str, str] | None = None) -> Document:
    """Build the work pool of a kind, in the form of Prefect's API.

    Args:
        kind: process, docker or kubernetes.
        environment: names images, networks and addresses; None: this process's environment.
    """
    known = os.environ if environment is None else environment
    template = {"process": _process, "docker": _docker, "kubernetes": _kubernetes}[kind](known)
    return {
        "name": kind,
        "type": kind,
        "description": _DESCRIPTIONS[kind],
        "base_job_template": template,
        # No `is_paused`: a pool that was paused by hand stays paused after the next set-up.
        "concurrency_limit": int(known.get("MARIO_POOL_LIMIT") or _default_limit(known)),
    }


def _default_limit(environment: Mapping[str, str]) -> int:
    """The sum of the queues' limits, at least 8: with less, CPU work would wait for training."""
    return max(8, sum(int(queue["concurrency_limit"]) for queue in queues(environment)))


def queues(environment: Mapping[str, str] | None = None) -> tuple[Document, ...]:
    """Build the two queues of every pool: one for training, and one that never waits for it.

    Queues belong to a pool: two pools on one machine do not count each other's flow runs.
    """
    known = os.environ if environment is None else environment
    return (
        {
            "name": "gpu",
            "description": "Training: one flow run per GPU.",
            "concurrency_limit": int(known.get("MARIO_GPUS") or 1),
            "priority": 1,
        },
        {
            "name": "cpu",
            "description": "Evaluation, judging and all other work without a GPU.",
            "concurrency_limit": int(known.get("MARIO_CPU_RUNS") or 4),
            "priority": 2,
        },
    )


def _set_defaults(template: Document, **defaults: Any) -> None:
    """Set the defaults of job variables that the worker's own template has."""
    for name, value in defaults.items():
        template["variables"]["properties"][name]["default"] = value


def _process(environment: Mapping[str, str]) -> Document:
    from prefect.workers.process import ProcessWorker

    template: Document = copy.deepcopy(ProcessWorker.get_default_base_job_template())
    # Addresses come from the worker's own environment, which its child processes inherit.
    _set_defaults(template, env=run_environment({}))
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
        # On a network of its own the container's metrics page is visible to its neighbours only,
        # among them Prometheus. Otherwise the container may share the host's network, and its
        # page stays on 127.0.0.1.
        variables |= {"MARIO_METRICS_HOST": "0.0.0.0", "MARIO_METRICS_TARGETS": "/targets"}  # noqa: S104
        volumes.append(environment.get("MARIO_TARGETS_VOLUME") or "mario-targets:/targets")
    if address := environment.get("MARIO_DOCKER_API_URL"):
        # The worker's address of the server may not resolve inside a container.
        variables["PREFECT_API_URL"] = address
    _set_defaults(
        template,
        env=variables,
        image=environment.get("MARIO_TRAINER_IMAGE") or "mario-trainer:dev",
        image_pull_policy="IfNotPresent",
        networks=[network] if network else [],
        volumes=volumes,
        mem_limit="8g",
    )
    template["variables"]["properties"] |= {
        "device_requests": {
            "title": "Device requests",
            "description": "GPUs, as Docker's DeviceRequests; an empty list for none.",
            "type": "array",
            "items": {"type": "object"},
            "default": [{"Driver": "nvidia", "Count": 1, "Capabilities": [["gpu"]]}],
        },
        "shm_size": _shared_memory("2g"),
    }
    template["job_configuration"]["container_create_kwargs"] = {
        # Replaces the image's entry point, `mario`; Prefect gives the command.
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
    _set_defaults(
        template,
        env=_container_environment(environment),
        namespace="mario",
        service_account_name="mario-training",
        image=environment.get("MARIO_TRAINER_IMAGE") or "mario-trainer:0.1.0-cuda",
        image_pull_policy="IfNotPresent",
        finished_job_ttl=86_400,
        cpu_request="4",
        cpu_limit="16",
        memory_request="8Gi",
        memory_limit="24Gi",
    )
    template["variables"]["properties"] |= {
        "gpus": {
            "title": "GPUs",
            "description": "How many nvidia.com/gpu the pod asks for.",
            "type": "integer",
            "minimum": 0,
            "default": 1,
        },
        "node_selector": {
            "title": "Node selector",
            "description": "Labels of the nodes that may run the pod.",
            "type": "object",
            "additionalProperties": {"type": "string"},
            "default": {"nvidia.com/gpu.present": "true"},
        },
        "tolerations": {
            "title": "Tolerations",
            "description": "Taints of nodes that the pod tolerates.",
            "type": "array",
            "items": {"type": "object"},
            "default": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
        "runtime_class": {
            "title": "Runtime class",
            "description": "RuntimeClass of the pod, such as nvidia; none: the cluster's default.",
            "anyOf": [{"type": "string"}, {"type": "null"}],
            "default": environment.get("MARIO_RUNTIME_CLASS") or None,
        },
        "shared_memory": _shared_memory("4Gi"),
    }
    # Prefect retries, and resumes from the checkpoint; a second pod of the Job would start over.
    template["variables"]["properties"].pop("backoff_limit", None)
    template["job_configuration"]["job_manifest"] = _job_manifest()
    return template


def _shared_memory(default: str) -> Document:
    return {
        "title": "Shared memory",
        "description": "Size of /dev/shm, through which PyTorch processes share tensors.",
        "type": "string",
        "default": default,
    }


def _job_manifest() -> Document:
    """The Job of a flow run."""
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
                    # The worker sets the label `name` to the deployment's; network policies
                    # select by this one.
                    "labels": {"app.kubernetes.io/component": "training"},
                    "annotations": {
                        "prometheus.io/scrape": "true",
                        "prometheus.io/port": str(METRICS_PORT),
                        "prometheus.io/path": "/metrics",
                    },
                },
                "spec": _pod_spec(),
            },
        },
    }


def _pod_spec() -> Document:
    """The pod of a flow run, as in `k8s/base/training-job.yaml`."""
    return {
        # The worker requires these two here; the cluster drops unknown fields.
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
        "containers": [_container()],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": "mario-runs"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}},
            {"name": "home", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "shared-memory",
             "emptyDir": {"medium": "Memory", "sizeLimit": "{{ shared_memory }}"}},
        ],
    }  # fmt: skip


def _container() -> Document:
    """The container of a flow run's pod."""
    return {
        "name": "prefect-job",
        "image": "{{ image }}",
        "imagePullPolicy": "{{ image_pull_policy }}",
        # Replaces the image's entry point, `mario`; Prefect gives the command.
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
        # Ready while it trains: then its metrics page answers, and Prometheus scrapes ready pods
        # only (monitoring/prometheus/kubernetes.yml). No liveness probe: a pipeline goes on after
        # training without the page, and heartbeats tell Prefect whether it lives.
        "readinessProbe": {
            "httpGet": {"path": "/metrics", "port": "metrics"},
            "periodSeconds": 30,
        },
        "resources": {
            f"{kind}s": {
                "cpu": f"{{{{ cpu_{kind} }}}}",
                "memory": f"{{{{ memory_{kind} }}}}",
                "nvidia.com/gpu": "{{ gpus }}",
            }
            for kind in ("request", "limit")
        },
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
