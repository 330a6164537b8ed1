"""Addresses of the service: ports in use, the metrics port, IPv6."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from mario.client.client import MarioClient
from mario.errors import ServingError
from serving.launcher import free_port, running
from serving.settings import ServingSettings
from tests.support.onnx_networks import random_observations, write_test_artefact


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_test_artefact(tmp_path_factory.mktemp("policy") / "v1").folder


def _has_ipv6() -> bool:
    try:
        free_port("::1")
    except OSError:
        return False
    return True


def _serve(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``mario serve`` to its end; a time-out means that it accepted the settings."""
    return subprocess.run(
        [Path(sys.executable).parent / "mario", "serve", "--policy", folder, *options],
        cwd=folder.parent,
        env={k: v for k, v in os.environ.items() if not k.startswith("MARIO_SERVING_")},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def _assert_refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "serving on" not in done.stdout


def test_a_port_in_use_is_refused(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = ServingSettings(policy=folder, port=port)
        with pytest.raises(ServingError, match="free port"), running(settings):
            pass
        # The metrics port is checked before "serving on" is printed.
        done = _serve(folder, "--port", "0", "--metrics-port", str(port))
    _assert_refused(done, f"metrics port: got 127.0.0.1:{port}, which cannot be listened on")


def test_one_port_for_requests_and_metrics_is_refused(folder: Path) -> None:
    port = str(free_port())
    done = _serve(folder, "--port", port, "--metrics-port", port)
    _assert_refused(done, f"got {port} for both MARIO_SERVING_PORT and MARIO_SERVING_METRICS_PORT")


def test_two_services_do_not_share_the_metrics_port(folder: Path) -> None:
    port = free_port()
    settings = ServingSettings(policy=folder, port=0, metrics_port=port, workers=2)
    with running(settings) as url:
        done = _serve(folder, "--port", "0", "--metrics-port", str(port))
        _assert_refused(done, f"metrics port: got 127.0.0.1:{port}")
        # The workers of one service share it, and it reveals only its name.
        metrics = f"http://127.0.0.1:{port}/metrics"
        assert "mario_serving_version_info" in httpx.get(metrics).text
        for method in ("POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"):
            answer = httpx.request(method, metrics)
            assert answer.status_code == 405, method
            assert answer.headers["allow"] == "GET"
            assert answer.headers["server"] == "mario"
        assert "Python" not in str(httpx.get(f"{metrics}/x").headers)
        assert httpx.get(f"{url}/livez").status_code == 200
    # The port is free again.
    with running(ServingSettings(policy=folder, port=0, metrics_port=port)):
        assert httpx.get(metrics).status_code == 200


@pytest.mark.skipif(not _has_ipv6(), reason="needs IPv6 on loopback")
def test_the_service_listens_on_ipv6(folder: Path) -> None:
    port = free_port("::1")
    with running(ServingSettings(policy=folder, host="::1", port=0, metrics_port=port)) as url:
        assert url.startswith("http://[::1]:")
        assert httpx.get(f"http://[::1]:{port}/metrics").status_code == 200
        with MarioClient(url) as client:
            assert client.predict(random_observations(2)).version == "v1"
        taken = int(url.rpartition(":")[2])
        done = _serve(folder, "--host", "::1", "--port", str(taken))
        _assert_refused(done, f"got ::1:{taken}, which cannot be listened on")
        # Its own address is an allowed host name.
        connection = http.client.HTTPConnection("::1", taken, timeout=60)
        connection.request("POST", "/sessions")
        assert connection.getresponse().status == 201
        connection.close()
