"""Test the containers and pods that workers make of the work pools, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from flows.container_entrypoint import GRACE_SECONDS
from flows.decisions import Resources, job_variables
from flows.work_pools import HEARTBEAT_SECONDS, METRICS_PORT, POOL_TYPES, pool
from tests.support.paths import ROOT
from tests.support.pools import configured, first_command

IN_COMPOSE = {"MARIO_DOCKER_NETWORK": "docker_data", "MARIO_DOCKER_API_URL": "http://prefect/api"}


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "k8s/base" / name).read_text()))


def pod_of(made: Any) -> dict[str, Any]:
    found: dict[str, Any] = made.job_manifest["spec"]["template"]
    return found


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_every_container_starts_with_the_entry_point(kind: str) -> None:
    made = configured(kind)
    command = first_command(kind, made)
    assert command == [
        "python",
        "-m",
        "flows.container_entrypoint",
        "prefect",
        "flow-run",
        "execute",
    ]
    environment = made.env
    assert environment["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"
    if kind == "kubernetes":
        assert pod_of(made)["spec"]["terminationGracePeriodSeconds"] == GRACE_SECONDS


def test_a_docker_container_has_gpu_memory_and_no_privileges() -> None:
    variables = {"shm_size": "3g", "mem_limit": "7g"}
    made = configured("docker", {"MARIO_TRAINER_IMAGE": "mario-trainer:test"}, **variables)
    assert made.image == "mario-trainer:test"
    assert made.image_pull_policy == "IfNotPresent"
    assert made.volumes == ["mario-runs:/runs"]
    assert made.mem_limit == "7g"
    extra = made.container_create_kwargs
    assert extra["device_requests"] == [{"Driver": "nvidia", "Count": 1, "Capabilities": [["gpu"]]}]
    assert extra["shm_size"] == "3g"
    assert extra["cap_drop"] == ["ALL"]
    assert extra["read_only"]
    assert not made.privileged
    assert made.env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(HEARTBEAT_SECONDS)
    without = configured("docker", device_requests=[])
    assert without.container_create_kwargs["device_requests"] == []


def test_docker_accepts_the_arguments_of_a_container() -> None:
    """Docker's client refuses unknown arguments, and no flow run of the pool could begin."""
    from docker.models.containers import _create_container_args

    extra = configured("docker").container_create_kwargs
    made = _create_container_args({"image": "mario-trainer:test", "version": "1.41", **extra})
    assert made["host_config"]["Init"] is True


def test_only_containers_on_the_network_of_the_stack_show_metrics() -> None:
    beside = configured("docker", IN_COMPOSE | {"MARIO_TARGETS_VOLUME": "docker_targets:/targets"})
    assert beside.networks == ["docker_data"]
    assert beside.env["MARIO_METRICS_HOST"] == "0.0.0.0"
    assert beside.env["MARIO_METRICS_TARGETS"] == "/targets"
    assert beside.volumes == ["mario-runs:/runs", "docker_targets:/targets"]
    assert beside.env["PREFECT_API_URL"] == "http://prefect/api", "not the worker's 127.0.0.1"
    alone = configured("docker")
    assert alone.volumes == ["mario-runs:/runs"]
    assert not [name for name in alone.env if name.startswith("MARIO_METRICS")]


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_containers_inherit_the_addresses_for_links(kind: str) -> None:
    addresses = {"MARIO_MLFLOW_URL": "https://mlflow.test", "MARIO_RUNS_URL": "https://runs.test"}
    assert addresses.items() <= configured(kind, addresses).env.items()


def test_templates_refer_to_the_secret_block_of_the_database_url() -> None:
    environment = {"MARIO_DATABASE_URL": "postgresql+psycopg2://mario:hush@db/mario"}
    for kind in POOL_TYPES:
        assert "hush" not in json.dumps(pool(kind, environment))
    assert "prefect.blocks.secret.mario-database-url" in json.dumps(pool("docker", environment))


def test_a_pod_equals_that_of_the_training_manifest() -> None:
    """Compare whole pods; each allowed difference is named with its reason."""
    (by_hand,) = manifests("training-job.yaml")
    job = configured("kubernetes").job_manifest
    pod, model = job["spec"].pop("template"), by_hand["spec"].pop("template")
    del by_hand["spec"]["suspend"]  # a person starts this Job
    assert job["spec"] == by_hand["spec"]
    for name in ("completions", "parallelism"):  # the worker requires them, the cluster drops them
        del pod["spec"][name]
    (container,), (trainer,) = (each["spec"].pop("containers") for each in (pod, model))
    assert pod["spec"] == model["spec"]

    assert pod["metadata"]["annotations"] == model["metadata"]["annotations"]
    del model["metadata"]["labels"]["app.kubernetes.io/name"]  # the worker writes the deployment's
    assert model["metadata"]["labels"].items() <= pod["metadata"]["labels"].items()

    for each in (container, trainer):
        for part in each["resources"].values():
            part["nvidia.com/gpu"] = str(part["nvidia.com/gpu"])
    # The worker sets the name, the image has CUDA, and Prefect gives the command. There is no
    # liveness probe, as a pipeline goes on after training without the metrics page.
    ours = {"name", "image", "command", "args", "livenessProbe", "env"}
    for name in sorted((container.keys() | trainer.keys()) - ours):
        assert container.get(name) == trainer.get(name), name
    environment = {each["name"]: each for each in container["env"]}
    assert [environment.get(each["name"]) for each in trainer["env"]] == trainer["env"]


def test_a_pod_has_the_configured_runtime_class() -> None:
    named = {"MARIO_RUNTIME_CLASS": "nvidia"}
    assert pod_of(configured("kubernetes", named))["spec"]["runtimeClassName"] == "nvidia"
    assert "runtimeClassName" not in pod_of(configured("kubernetes"))["spec"]
    on_cpu = job_variables("kubernetes", Resources(0, memory_gib=4, shared_memory_gib=1, cpus=2))
    without = pod_of(configured("kubernetes", named, **on_cpu))["spec"]
    assert without["runtimeClassName"] is None, "a node without a GPU may not have the class"


def test_network_policies_and_prometheus_select_the_pod() -> None:
    """The worker labels a pod with its deployment's name, so nothing may select by `name`."""
    pod = pod_of(configured("kubernetes"))
    labels = pod["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == "nights"
    (policy,) = (
        each["spec"] for each in manifests("serving-network.yaml")
        if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == "mario-training"
    )  # fmt: skip
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["ingress"][0]["ports"] == [{"port": METRICS_PORT, "protocol": "TCP"}]
    assert pod["spec"]["containers"][0]["ports"][0]["containerPort"] == METRICS_PORT

    scraped = yaml.safe_load((ROOT / "monitoring/prometheus/kubernetes.yml").read_text())
    (serving,) = (each for each in manifests("serving.yaml") if each["kind"] == "Deployment")
    (by_hand,) = manifests("training-job.yaml")
    found = {
        config["job_name"]: [scrapes(config, each) for each in
                             (pod, by_hand["spec"]["template"], serving["spec"]["template"])]
        for config in scraped["scrape_configs"]
    }  # fmt: skip
    assert found == {"training": [True, True, False], "serving": [False, False, True]}
    assert not scrapes(scraped["scrape_configs"][0], pod, ready="false"), (
        "its metrics page does not answer yet"
    )


def scrapes(config: dict[str, Any], pod: dict[str, Any], ready: str = "true") -> bool:
    """Whether Prometheus scrapes a pod: one of its ports passes all rules `keep` of the job."""
    known = {
        f"__meta_kubernetes_pod_label_{name.replace('.', '_').replace('/', '_')}": value
        for name, value in pod["metadata"]["labels"].items()
    } | {"__meta_kubernetes_pod_ready": ready}
    rules = [rule for rule in config["relabel_configs"] if rule.get("action") == "keep"]
    return any(
        all(known.get(rule["source_labels"][0],
                      {"__meta_kubernetes_pod_container_port_name": port["name"]}.get(
                          rule["source_labels"][0])) == rule["regex"] for rule in rules)
        for port in pod["spec"]["containers"][0]["ports"]
    )  # fmt: skip


def test_a_job_passes_the_kubernetes_schema() -> None:
    import kubernetes_validate

    manifest = configured("kubernetes", {"MARIO_RUNTIME_CLASS": "nvidia"}, gpus=2).job_manifest
    for name in ("completions", "parallelism"):  # the worker requires them, the cluster drops them
        del manifest["spec"]["template"]["spec"][name]
    for part in manifest["spec"]["template"]["spec"]["containers"][0]["resources"].values():
        part["nvidia.com/gpu"] = str(part["nvidia.com/gpu"])
    kubernetes_validate.validate(manifest, "1.32.0", strict=True)
