"""Alert rules and dashboards use declared metrics and work with a real Prometheus."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mario.telemetry.instruments import InstrumentSet
from mario.telemetry.names import ALL_METRICS, series_names
from mario.telemetry.page import MetricsPage
from mario.telemetry.training import TrainingMetrics
from tests.support.paths import ROOT
from tests.support.processes import free_port, server

MONITORING = ROOT / "monitoring"
RULE_FILES = sorted((MONITORING / "prometheus" / "rules").glob("*.yml"))
DASHBOARDS = sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))


def need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(
            f"{', '.join(missing)} not installed (apt-get install prometheus "
            "prometheus-alertmanager)"
        )


def rules() -> list[dict[str, Any]]:
    return [
        rule
        for path in RULE_FILES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


def panels() -> list[tuple[str, str]]:
    """Return (dashboard and panel, expression) of every target."""
    found = []
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                found.append((f"{path.stem}: {panel['title']}", target["expr"]))
    return found


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\bmario[_:][a-z0-9_:]+", re.sub(r'"[^"]*"', '""', expression)))


def test_alerts_panels_and_dashboards_exist() -> None:
    assert len(ALERTS) >= 20
    assert len(panels()) >= 60
    assert len(DASHBOARDS) == 3


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_use_declared_metrics(rule: dict[str, Any]) -> None:
    assert names_in(rule["expr"]) <= series_names() | RECORDED


def test_dashboards_use_declared_metrics_and_show_nearly_all_of_them() -> None:
    shown: set[str] = set()
    for where, expression in panels():
        names = names_in(expression)
        assert names <= series_names() | RECORDED, where
        shown |= names
    for path in DASHBOARDS:
        for variable in json.loads(path.read_text()).get("templating", {}).get("list", []):
            assert names_in(str(variable["query"])) <= series_names(), path
    shown |= {name for rule in rules() for name in names_in(rule["expr"])}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    unseen = {metric.name for metric in ALL_METRICS} - shown
    # Metrics to query by hand, without an alert or panel.
    assert unseen <= {
        "mario_training_info",
        "mario_training_updates_total",
        "mario_training_health_changes_total",
        "mario_training_rollbacks_total",
        "mario_training_checkpoint_seconds",
        "mario_training_last_checkpoint_timestamp_seconds",
        "mario_store_batches_total",
        "mario_store_journal_replayed_rows_total",
        "mario_store_last_write_timestamp_seconds",
        "mario_serving_last_swap_timestamp_seconds",
    }


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_every_alert_has_a_runbook_section_and_a_promtool_test_that_fires(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in {"critical", "warning", "info", "none"}
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["description"] or name == "MarioWatchdog"
    page, anchor = alert["annotations"]["runbook"].split("#")
    assert anchor == name.lower()
    assert f"\n## {name}\n" in (ROOT / page).read_text()
    fired = 0
    for path in (MONITORING / "prometheus" / "tests").glob("*.yml"):
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                fired += case["alertname"] == name and bool(case["exp_alerts"])
    assert fired, f"no promtool test lets {name} fire"


def test_promtool_accepts_the_rules_and_their_tests_pass(tmp_path: Path) -> None:
    need("promtool")
    tests = sorted((MONITORING / "prometheus" / "tests").glob("*.yml"))
    config = MONITORING / "prometheus" / "prometheus.yml"
    # Debian's promtool is built without Kubernetes; the rest of the file is still checked.
    in_cluster = yaml.safe_load((MONITORING / "prometheus" / "kubernetes.yml").read_text())
    for job in in_cluster["scrape_configs"]:
        assert job.pop("kubernetes_sd_configs") == [
            {"role": "pod", "namespaces": {"names": ["mario"]}}
        ]
    (tmp_path / "kubernetes.yml").write_text(yaml.safe_dump(in_cluster))
    for command in (
        ["promtool", "check", "config", config, tmp_path / "kubernetes.yml"],
        ["promtool", "check", "rules", *RULE_FILES],
        ["promtool", "test", "rules", *tests],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_broken_rule_fails_its_test(tmp_path: Path) -> None:
    """A collapse alert that reads another metric fails the promtool tests."""
    need("promtool")
    folder = tmp_path / "prometheus"
    shutil.copytree(MONITORING / "prometheus", folder)
    path = folder / "rules" / "training.yml"
    text = path.read_text()
    broken = text.replace('mario_training_health{state="collapsed"}', "mario_training_return")
    assert broken != text
    path.write_text(broken)
    command = ["promtool", "test", "rules", folder / "tests" / "training.yml"]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_alertmanager_accepts_its_configuration() -> None:
    need("amtool")
    config = MONITORING / "alertmanager" / "alertmanager.yml"
    done = subprocess.run(
        ["amtool", "check-config", config], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rendered_files_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mario.alerting", "--check"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@dataclass
class Stack:
    """A real Prometheus with the project's configuration that scrapes every second."""

    url: str
    targets: Path
    alerts: list[dict[str, Any]]

    def query(self, expression: str) -> list[dict[str, Any]]:
        data = urllib.parse.urlencode({"query": expression}).encode()
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/query", data, timeout=20) as answer:
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from None
        assert body["status"] == "success", body
        return body["data"]["result"]

    def wait(self, expression: str, seconds: float = 60) -> list[dict[str, Any]]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := self.query(expression):
                return found
            time.sleep(0.25)
        raise AssertionError(f"{expression} answered nothing for {seconds} s")


def everything(instruments: InstrumentSet) -> None:
    """Set every metric once, with realistic labels."""
    labels = {
        "run": "r0", "state": "healthy", "role": "champion", "seed_family": "screening",
        "model": "mario-1-1", "version": "3", "status": "200", "environment": "0",
    }  # fmt: skip
    for metric in ALL_METRICS:
        mine = {label: labels.get(label, "x") for label in metric.labels}
        if metric.kind == "counter":
            instruments.add(metric.name, 5, **mine)
        elif metric.kind == "gauge":
            instruments.set(metric.name, 1, **mine)
        else:
            instruments.observe(metric.name, 0.5, **mine)
    instruments.add("mario_serving_requests_total", 1, endpoint="x", status="500")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    need("prometheus", "prometheus-alertmanager")
    folder = tmp_path_factory.mktemp("prometheus")
    targets = folder / "targets"
    targets.mkdir()
    alerts: list[dict[str, Any]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            alerts.extend(json.loads(body)["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    hook = f"http://127.0.0.1:{receiver.server_port}/alerts"
    manager, prometheus = free_port(), free_port()
    settings = (MONITORING / "alertmanager" / "alertmanager.yml").read_text()
    assert "http://127.0.0.1:9095/alerts" in settings
    (folder / "alertmanager.yml").write_text(settings.replace("http://127.0.0.1:9095/alerts", hook))
    instruments = InstrumentSet()
    everything(instruments)
    with MetricsPage(instruments.registry) as page, MetricsPage(InstrumentSet().registry) as other:
        config = yaml.safe_load((MONITORING / "prometheus" / "prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(path) for path in RULE_FILES]
        config["alerting"]["alertmanagers"][0]["static_configs"] = [
            {"targets": [f"127.0.0.1:{manager}"]}
        ]
        for job in config["scrape_configs"]:
            job.pop("scrape_interval", None)
            if "file_sd_configs" in job:
                job["file_sd_configs"] = [
                    {"files": [f"{targets}/*.json"], "refresh_interval": "1s"}
                ]
            else:
                # One job serves all metrics: no series exists in two jobs.
                port = page.port if job["job_name"] == "serving" else other.port
                job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
            job.pop("metrics_path", None)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        url = f"http://127.0.0.1:{prometheus}"
        with (
            server(
                [
                    "prometheus-alertmanager",
                    f"--config.file={folder}/alertmanager.yml",
                    f"--storage.path={folder}/am",
                    f"--web.listen-address=127.0.0.1:{manager}",
                    "--cluster.listen-address=",
                ],
                log=folder / "alertmanager.log",
                ready=f"http://127.0.0.1:{manager}/-/ready",
            ),
            server(
                [
                    "prometheus",
                    f"--config.file={folder}/prometheus.yml",
                    f"--storage.tsdb.path={folder}/data",
                    f"--web.listen-address=127.0.0.1:{prometheus}",
                ],
                log=folder / "prometheus.log",
                ready=f"{url}/-/ready",
            ),
        ):
            yield Stack(url, targets, alerts)
    receiver.shutdown()
    receiver.server_close()


def test_every_panel_shows_something(stack: Stack) -> None:
    stack.wait("count_over_time(mario_serving_actions_total[30s]) >= 3")
    stack.wait("mario:serving_requests:rate5m > 0 or mario:serving_requests:rate5m == 0")
    empty = []
    for where, expression in panels():
        filled = expression.replace("$__rate_interval", "30s").replace("$run", ".*")
        filled = filled.replace("$model", ".*")
        # Without traffic, rates are 0 and 0/0 returns nothing; the test only requires series.
        filled = re.sub(r" > 0\)$", " >= 0)", filled)
        if not stack.query(filled):
            empty.append(f"{where}: {filled}")
    assert empty == []


def test_a_collapse_reaches_the_receiver(stack: Stack) -> None:
    instruments = InstrumentSet()
    training = TrainingMetrics(instruments, "ruined")
    training.start(
        config="demo", config_hash="ab", algorithm="ppo", task="1-1", environments=8,
        planned_steps=1000,
    )  # fmt: skip
    training.health("healthy", ())
    with MetricsPage(instruments.registry, targets=stack.targets, name="ruined"):
        stack.wait('mario_training_health{run="ruined",state="healthy",job="training"} == 1')
        assert not any(alert["labels"].get("run") == "ruined" for alert in stack.alerts)
        training.health("collapsed", ("entropy",))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            mine = [alert for alert in stack.alerts if alert["labels"].get("run") == "ruined"]
            if mine:
                break
            time.sleep(0.25)
    assert mine[0]["labels"]["alertname"] == "MarioTrainingCollapsed"
    assert mine[0]["annotations"]["summary"] == "Training run ruined has collapsed"
    assert mine[0]["status"] == "firing"
