"""The files that no program of ours reads: Makefile, constraints, workflows, compose, manifests."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.artifacts import file_link
from mario.jobs.context import JobContext, JobSettings
from scripts.requirements import requirements
from tests.support.paths import ROOT
from tests.support.pools import configured
from tests.support.processes import free_port, server

BIN = Path(sys.executable).parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
OVERLAYS = [ROOT / "k8s" / "base", *sorted((ROOT / "k8s" / "overlays").iterdir())]


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(parts) == 2 for parts in found)
    return {canonical(name): version for name, version in found}


# --- Makefile and packages ------------------------------------------------------------------------


def test_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.M)
    assert phony
    listed = run("make", "help", cwd=ROOT).stdout
    for target in phony[1].split():
        assert re.search(rf"make {target} +\S", listed), target


def test_every_requirement_is_pinned() -> None:
    pyproject = ROOT / "pyproject.toml"
    extras = tomllib.loads(pyproject.read_text())["project"]["optional-dependencies"]
    assert set(extras) >= {"train", "serve", "flows", "dev"}
    for line in requirements(pyproject, ["build", "base", *extras]):
        name = re.match(r"[A-Za-z0-9_.-]+", line)
        assert name
        assert canonical(name[0]) in pins(), f"{line} is not in constraints.txt"
    with pytest.raises(SystemExit, match="no-such-extra"):
        requirements(pyproject, ["no-such-extra"])


def test_serving_asks_for_nothing_that_trains() -> None:
    names = {
        re.split(r"[<>=\[]", line)[0]
        for line in requirements(ROOT / "pyproject.toml", ["base", "serve"])
    }
    assert not names & {"torch", "stable-baselines3", "prefect", "mlflow", "pyarrow"}


def test_a_version_that_is_pinned_twice_or_moves_torch_is_not_there() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    assert len(lines) == len(pins())
    # Torch is installed first by exactly this pin; a local version would not exist elsewhere.
    assert pins()["torch"].count("+") == 0


# --- workflows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_valid_pinned_and_call_targets_that_exist(path: Path) -> None:
    done = run(BIN / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", path)
    assert done.returncode == 0, done.stdout
    workflow = load(path)
    assert workflow["permissions"] == {}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for job in workflow["jobs"].values():
        assert job["permissions"] == {"contents": "read"}
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
            for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", "")):
                assert target in targets
        for target in job.get("strategy", {}).get("matrix", {}).get("target", []):
            assert target in targets


def test_zizmor_finds_nothing_and_would_find_an_action_by_tag(tmp_path: Path) -> None:
    done = run(BIN / "zizmor", "--offline", "--quiet", ROOT / ".github")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    broken = tmp_path / "ci.yml"
    broken.write_text(re.sub(r"actions/checkout@[0-9a-f]{40}", "actions/checkout@v5", text))
    assert run(BIN / "zizmor", "--offline", "--quiet", broken).returncode != 0


def test_the_gate_script_promotes_only_what_the_gate_named(tmp_path: Path) -> None:
    mario = tmp_path / "mario"
    mario.write_text(
        '#!/bin/sh\necho "$@" >>"$LOG"\n'
        '[ "$1" = gate ] || exit 0\necho "PROMOTE: v2"\n'
        'echo "verdict v-17; promote with: mario promote v-17"\nexit "$CODE"\n'
    )
    mario.chmod(0o755)
    script = ROOT / "scripts" / "gate_and_promote.sh"
    for code, calls in ((0, ["gate challenger --task 1-1", "promote v-17"]),
                        (4, ["gate challenger --task 1-1"])):  # fmt: skip
        log = tmp_path / f"log{code}"
        environment = {"MARIO": str(mario), "LOG": str(log), "CODE": str(code), "PATH": "/bin"}
        done = run("/bin/bash", script, "challenger", "1-1", env=environment | {
            "PATH": "/usr/bin:/bin"})  # fmt: skip
        assert done.returncode == code, done.stderr
        assert log.read_text().splitlines() == calls


# --- compose --------------------------------------------------------------------------------------


def compose() -> dict[str, Any]:
    return load(ROOT / "docker" / "compose.yaml")


def test_compose_is_valid_and_closed() -> None:
    path = ROOT / "docker" / "compose.yaml"
    done = run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)
    assert done.returncode == 0, done.stdout
    data = compose()
    assert data["networks"]["data"]["internal"] is True
    assert set(data["services"]) >= {
        "postgres", "mlflow", "prefect", "worker", "serving", "monitor",
        "prometheus", "alertmanager", "grafana",
    }  # fmt: skip
    for name, service in data["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} is open to other machines"
        assert service["init"] is True, name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service.get("read_only") or name == "postgres", name
        # The serving image has its health check inside.
        assert "healthcheck" in service or name == "serving", name
        assert "privileged" not in service


def test_what_is_built_says_which_commit_it_is_of() -> None:
    head = run("git", "rev-parse", "HEAD", cwd=ROOT)
    commit = head.stdout.strip() if head.returncode == 0 else "unknown"
    made = run("make", "--dry-run", "docker-build", cwd=ROOT).stdout
    builds = [line for line in made.splitlines() if "docker build" in line]
    assert len(builds) == 2
    for line in builds:
        assert f" --build-arg REVISION={commit} " in line
    for service in compose()["services"].values():
        if "build" in service:
            assert service["build"]["args"]["REVISION"] == "${REVISION:-unknown}"
    for path in sorted((ROOT / "docker").glob("*.Dockerfile")):
        assert "ARG REVISION=unknown" in path.read_text(), path
    guide = (ROOT / "docs" / "guides" / "deployment.md").read_text()
    assert "REVISION=$(git rev-parse HEAD) docker compose -f docker/compose.yaml up" in guide


def as_without_env_file(text: str) -> str:
    """What compose makes of a value where no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_links_lead_to_what_the_stack_publishes() -> None:
    services = compose()["services"]
    worker = services["worker"]["environment"]
    for name, service in (("MARIO_MLFLOW_URL", "mlflow"), ("MARIO_RUNS_URL", "runs")):
        address = as_without_env_file(worker[name]).removeprefix("http://")
        published = [as_without_env_file(port) for port in services[service]["ports"]]
        assert any(port.startswith(f"{address}:") for port in published), (name, published)
        assert "front" in services[service]["networks"], "an internal network publishes nothing"
    assert services["runs"]["volumes"] == ["runs:/runs:ro"]
    assert "data" not in services["runs"]["networks"], "it has nothing to ask"


def test_a_browser_opens_a_report_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, port = compose()["services"]["runs"], free_port()
    command = [str(port) if word == "8099" else str(tmp_path) if word == "/runs" else word
               for word in (*service["entrypoint"], *service["command"])]  # fmt: skip
    assert command[0] == "python"
    assert {str(port), str(tmp_path)} <= set(command)
    context = JobContext(JobSettings.embedded(tmp_path))
    report = context.settings.run_dir("run-1") / "verdict v-1.html"
    report.parent.mkdir(parents=True)
    report.write_text("<h1>KEEP</h1>")
    monkeypatch.setenv("MARIO_RUNS_URL", f"http://127.0.0.1:{port}")
    (link,) = re.findall(r"\((http.*)\)$", file_link(report, context))
    with server([sys.executable, *command[1:]], log=tmp_path / "page.log",
                ready=f"http://127.0.0.1:{port}/"):  # fmt: skip
        with urllib.request.urlopen(link, timeout=10) as answer:
            assert answer.headers["Content-Type"] == "text/html"
            assert answer.read() == b"<h1>KEEP</h1>"
        with pytest.raises(urllib.error.HTTPError, match="501"):
            urllib.request.urlopen(urllib.request.Request(link, b"other", method="PUT"), timeout=10)
    assert report.read_text() == "<h1>KEEP</h1>"


def test_prometheus_asks_services_that_exist() -> None:
    services = compose()["services"]
    config = load(ROOT / "monitoring" / "prometheus" / "prometheus.yml")
    for job in config["scrape_configs"]:
        for group in job.get("static_configs", []):
            for target in group["targets"]:
                host = target.split(":")[0]
                assert host in {*services, "localhost"}, target
    manager = config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"][0]
    assert manager.split(":")[0] in services


def test_every_password_can_be_set_from_outside() -> None:
    text = (ROOT / "docker" / "compose.yaml").read_text()
    offered = (ROOT / "docker" / "env.example").read_text()
    for name in ("POSTGRES_PASSWORD", "GRAFANA_PASSWORD", "MARIO_SERVING_TOKENS"):
        assert f"${{{name}:-" in text
        assert f"{name}=" in offered
    ignored = run("git", "check-ignore", "--quiet", "docker/.env", cwd=ROOT)
    assert ignored.returncode in {0, 128}  # 128: this is not a git checkout


@pytest.mark.parametrize("path", sorted((ROOT / "docker").glob("*.Dockerfile")), ids=str)
def test_dockerfiles_lint_and_run_without_root(path: Path) -> None:
    done = run(BIN / "hadolint", path)
    assert done.returncode == 0, done.stdout
    text = path.read_text()
    assert re.search(r"^ARG BASE=\S+@sha256:[0-9a-f]{64}$", text, re.M)
    assert re.findall(r"^USER (.*)$", text, re.M)[-1] == "10001:10001"
    assert "HEALTHCHECK" in text
    assert "org.opencontainers.image.title" in text
    # Every file that is copied is let through by .dockerignore.
    allowed = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M):
        for source in sources.split():
            assert any(source == name or source.startswith(f"{name}/") for name in allowed), source


# --- Kubernetes -----------------------------------------------------------------------------------


def manifests(folder: Path) -> list[dict[str, Any]]:
    command = ["kustomize", "build"]
    if shutil.which("kustomize") is None:
        command = ["kubectl", "kustomize"]
        # Debian's kubectl (1.20) has a kustomize that is too old for these files.
        if shutil.which("kubectl") is None or not re.search(
            r"^Kustomize Version: v5", run("kubectl", "version", "--client").stdout, re.M
        ):
            pytest.skip("no kustomize, and no kubectl with kustomize 5 inside (1.27 or newer)")
    done = run(*command, folder)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def one(found: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (match,) = [m for m in found if m["kind"] == kind and m["metadata"]["name"] == name]
    return match


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: path.name)
def test_kustomize_builds_and_every_object_is_valid(folder: Path, tmp_path: Path) -> None:
    found = manifests(folder)
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump_all(found))
    done = run(BIN / "kubernetes-validate", "--strict", "-k", "1.32.0", path)
    assert done.returncode == 0, done.stdout + done.stderr
    pods = [m["spec"]["template"]["spec"] for m in found if m["kind"] in {"Deployment", "Job"}]
    assert len(pods) == 4
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert ":" in container["image"]


def test_a_typo_in_a_manifest_is_found(tmp_path: Path) -> None:
    deployment = one(manifests(ROOT / "k8s" / "base"), "Deployment", "mario-serving")
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    path = tmp_path / "typo.yaml"
    path.write_text(yaml.safe_dump(deployment))
    done = run(BIN / "kubernetes-validate", "--strict", "-k", "1.32.0", path)
    assert done.returncode != 0


def test_training_asks_for_a_gpu_and_is_never_started_twice() -> None:
    for folder in (ROOT / "k8s" / "base", ROOT / "k8s" / "overlays" / "gpu"):
        job = one(manifests(folder), "Job", "mario-training")["spec"]
        (container,) = job["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert job["backoffLimit"] == 0
        assert job["template"]["spec"]["restartPolicy"] == "Never"
    local = one(manifests(ROOT / "k8s" / "overlays" / "local"), "Job", "mario-training")
    assert "nvidia.com/gpu" not in str(local)


def test_pods_of_the_pool_have_the_runtime_class_of_the_gpu_overlay() -> None:
    job = one(manifests(ROOT / "k8s" / "overlays" / "gpu"), "Job", "mario-training")
    by_hand = job["spec"]["template"]["spec"]
    made = configured("kubernetes", {"MARIO_RUNTIME_CLASS": "nvidia"}).job_manifest
    pod = made["spec"]["template"]["spec"]
    assert pod["runtimeClassName"] == by_hand["runtimeClassName"]
    assert pod["containers"][0]["image"] == by_hand["containers"][0]["image"]


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: path.name)
def test_links_lead_to_a_page_that_shows_the_runs_and_writes_nothing(folder: Path) -> None:
    found = manifests(folder)
    addresses = one(found, "ConfigMap", "mario")["data"]
    assert addresses["MARIO_RUNS_URL"].startswith("http")
    assert addresses["MARIO_MLFLOW_URL"].startswith("http")
    assert "mlflow:" not in addresses["MARIO_MLFLOW_URL"], "no browser knows that name"
    template = one(found, "Deployment", "mario-runs")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    (mount,) = container["volumeMounts"]
    assert mount["readOnly"] is True
    assert container["command"][-1] == mount["mountPath"] == "/runs"
    service = one(found, "Service", "mario-runs")["spec"]
    assert service["selector"].items() <= template["metadata"]["labels"].items()
    assert service["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}
    policy = one(found, "NetworkPolicy", "mario-runs")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert policy["ingress"][0]["ports"][0]["port"] == container["ports"][0]["containerPort"]
    assert policy["egress"] == []


def test_the_worker_watches_the_namespace_that_its_role_holds_in() -> None:
    found = manifests(ROOT / "k8s" / "base")
    role = one(found, "Role", "mario-worker")
    deployment = one(found, "Deployment", "mario-worker")
    assert role["metadata"]["namespace"] == deployment["metadata"]["namespace"] == "mario"
    assert not [each for each in found if each["kind"].startswith("ClusterRole")]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each for each in container["env"]}
    watched = environment["PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"]
    assert watched["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.namespace"
    for group, resource in (("", "pods"), ("batch", "jobs"), ("", "events")):
        assert any(
            group in rule["apiGroups"] and resource in rule["resources"]
            and {"get", "list", "watch"} <= set(rule["verbs"]) for rule in role["rules"]
        ), resource  # fmt: skip


def test_selectors_ports_and_probes_fit_together() -> None:
    from serving.api.predict import __file__ as endpoints

    found = manifests(ROOT / "k8s" / "base")
    deployment = one(found, "Deployment", "mario-serving")["spec"]
    labels = deployment["template"]["metadata"]["labels"].items()
    (container,) = deployment["template"]["spec"]["containers"]
    names = {port["name"] for port in container["ports"]}
    service = one(found, "Service", "mario-serving")["spec"]
    budget = one(found, "PodDisruptionBudget", "mario-serving")["spec"]["selector"]["matchLabels"]
    scaler = one(found, "HorizontalPodAutoscaler", "mario-serving")["spec"]
    assert service["selector"].items() <= labels
    assert budget.items() <= labels
    assert {port["targetPort"] for port in service["ports"]} <= names
    assert scaler["scaleTargetRef"]["name"] == "mario-serving"
    assert (
        scaler["minReplicas"]
        > one(found, "PodDisruptionBudget", "mario-serving")["spec"]["minAvailable"]
    )
    source = Path(endpoints).read_text()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert f'"{container[probe]["httpGet"]["path"]}"' in source
