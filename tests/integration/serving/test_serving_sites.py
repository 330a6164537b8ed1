"""The checks of the Origin and Host headers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from mario.errors import ServingError
from serving.launcher import running
from serving.settings import ServingSettings
from tests.support.onnx_networks import write_test_artefact

TOKEN = "site-token-0123456789"
BYTES = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_test_artefact(tmp_path_factory.mktemp("policy") / "v1").folder


@pytest.fixture(scope="module")
def tokenless(folder: Path) -> Iterator[str]:
    settings = ServingSettings(policy=folder, port=0, allowed_hosts="Mario.example, other.example")
    with running(settings) as url:
        yield url


def test_other_sites_cannot_use_a_service_without_tokens(tokenless: str) -> None:
    """A browser lets any site post to the service; only the Origin header shows it."""
    port = tokenless.rpartition(":")[2]
    foreign = ("https://evil.example", "null", "http://localhost:1", f"http://127.0.0.1:{port}1")
    for origin in foreign:
        for method, path in (
            ("POST", "/sessions"),
            ("POST", "/predict/raw"),
            ("POST", "/v2/models/mario/infer"),
            ("DELETE", f"/sessions/{'0' * 37}"),
            ("POST", "/login"),
        ):
            answer = httpx.request(method, tokenless + path, headers=BYTES | {"origin": origin})
            assert answer.status_code == 403, (origin, path)
            assert answer.json()["reason"] == "origin"
    assert "mario_serving_sessions 0.0" in httpx.get(f"{tokenless}/metrics").text
    for origin in (tokenless, f"HTTP://127.0.0.1:{port}", "https://mario.example"):
        answer = httpx.post(f"{tokenless}/sessions", headers={"origin": origin})
        assert answer.status_code == 201, origin
    assert httpx.post(f"{tokenless}/sessions").status_code == 201


def test_dns_rebinding_is_refused_without_tokens(tokenless: str) -> None:
    """With DNS rebinding, page and service have one origin; only the Host header shows it."""
    port = tokenless.rpartition(":")[2]
    for host in (f"evil.example:{port}", "localhost.evil.example", "0.0.0.0", "127.0.0.1.nip.io"):
        own = {"host": host, "origin": f"http://{host}"}
        for method, path in (("POST", "/sessions"), ("GET", "/card"), ("GET", "/metrics")):
            answer = httpx.request(method, tokenless + path, headers=own)
            assert answer.status_code == 403, (host, path)
            assert answer.json()["reason"] == "host"
        with (
            pytest.raises(InvalidStatus),
            connect(f"ws{tokenless.removeprefix('http')}/watch", additional_headers=own),
        ):
            pass
        assert httpx.get(f"{tokenless}/livez", headers={"host": host}).status_code == 200
    for host in (
        "localhost",
        f"LOCALHOST:{port}",
        f"[::1]:{port}",
        "127.0.0.2",
        "mario.example:80",
    ):
        assert httpx.get(f"{tokenless}/card", headers={"host": host}).status_code == 200, host
    with pytest.raises(ServingError, match="ALLOWED_HOSTS"):
        ServingSettings.from_env({"MARIO_SERVING_ALLOWED_HOSTS": "https://mario.example/"})


def test_with_tokens_the_host_name_does_not_matter(folder: Path) -> None:
    """Probes and proxies use many names; the token decides."""
    with running(ServingSettings(policy=folder, port=0, tokens=TOKEN)) as url:
        headers = {"host": "mario.svc.cluster.local", "authorization": f"Bearer {TOKEN}"}
        assert httpx.get(f"{url}/readyz", headers={"host": headers["host"]}).status_code == 200
        assert httpx.get(f"{url}/card", headers=headers).status_code == 200
        # A page of another site is still refused, as the browser may hold the cookie.
        foreign = headers | {"origin": "https://evil.example"}
        assert httpx.post(f"{url}/sessions", headers=foreign).status_code == 403
        assert httpx.post(f"{url}/sessions", headers=headers).status_code == 201
