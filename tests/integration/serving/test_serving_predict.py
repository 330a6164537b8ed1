"""The real BentoML service in a process: predictions, errors, health, metrics."""

from __future__ import annotations

import base64
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import numpy as np
import pytest

from mario.policy.onnx import OnnxPolicy
from mario.policy.policy import softmax
from serving.launcher import free_port, running
from serving.settings import ServingSettings
from tests.support.onnx_networks import random_observations, write_test_artefact
from tests.support.paths import ROOT

BYTES = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> OnnxPolicy:
    return OnnxPolicy(write_test_artefact(tmp_path_factory.mktemp("policy") / "v1"))


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def client(policy: OnnxPolicy, metrics_port: int) -> Iterator[httpx.Client]:
    settings = ServingSettings(
        policy=policy.artefact.folder, port=0, max_observations=8, metrics_port=metrics_port
    )
    with running(settings) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def test_json_and_bytes_answers_equal_the_policys_output(
    client: httpx.Client, policy: OnnxPolicy
) -> None:
    observations = random_observations(3)
    logits, values = policy.infer(observations)
    probabilities = softmax(logits)
    encoded = [base64.b64encode(o.tobytes()).decode() for o in observations]
    answers = [
        client.post("/predict", json={"observations": observations.tolist()}),
        client.post("/predict", json={"observations": encoded, "mode": "greedy"}),
        client.post("/predict/raw", content=observations.tobytes(), headers=BYTES),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        document = answer.json()
        assert document["version"] == "v1"
        assert document["digest"] == policy.artefact.digest
        assert 0 < document["latency_seconds"] < 30
        assert len(document["predictions"]) == 3
        for row, prediction in enumerate(document["predictions"]):
            action = int(probabilities[row].argmax())
            assert prediction["action"] == action
            assert prediction["action_name"] == policy.actions[action].name
            assert prediction["buttons"] == policy.actions[action].buttons
            np.testing.assert_allclose(prediction["probabilities"], probabilities[row], atol=1e-6)
            assert prediction["value"] == pytest.approx(float(values[row]), abs=1e-5)

    answer = client.post(
        "/predict/raw",
        content=observations.tobytes(),
        headers=BYTES | {"accept": "application/octet-stream"},
    )
    assert answer.headers["content-type"] == "application/octet-stream"
    for name, value in (
        ("digest", policy.artefact.digest),
        ("version", "v1"),
        ("mode", "greedy"),
        ("actions", ",".join(action.name for action in policy.actions)),
    ):
        assert answer.headers[f"x-mario-{name}"] == value
    assert 0 < float(answer.headers["x-mario-latency-seconds"]) < 30
    rows = np.frombuffer(answer.content, dtype="<f4").reshape(3, -1)
    np.testing.assert_array_equal(rows[:, 0].copy().view("<i4"), probabilities.argmax(1))
    buttons = [policy.actions[action].buttons for action in probabilities.argmax(1)]
    np.testing.assert_array_equal(rows[:, 1].copy().view("<i4"), buttons)
    np.testing.assert_array_equal(rows[:, 2], values)
    np.testing.assert_array_equal(rows[:, 3:], probabilities)


def test_one_observation_and_a_seed(client: httpx.Client) -> None:
    observation = random_observations(1)[0].tolist()
    asks = {"observation": observation, "mode": "sample", "seed": 7}
    first, second = client.post("/predict", json=asks), client.post("/predict", json=asks)
    assert first.json()["predictions"] == second.json()["predictions"]
    assert first.json()["mode"] == "sample"
    seen = {
        client.post("/predict/raw?mode=sample", content=random_observations(1).tobytes(),
                    headers=BYTES).json()["predictions"][0]["action"]
        for _ in range(40)
    }  # fmt: skip
    assert len(seen) > 1


def _nested() -> list[list[list[object]]]:
    return [[[0] * 84 for _ in range(84)] for _ in range(4)]


def _with(value: object) -> list[list[list[object]]]:
    observation = _nested()
    observation[2][3][4] = value
    return observation


@pytest.mark.parametrize(
    ("document", "status", "words"),
    [
        ({}, 400, "either observation"),
        ({"observation": _nested(), "observations": []}, 400, "either observation"),
        ({"observation": _nested(), "extra": 1}, 400, "unknown key"),
        ({"observations": []}, 400, "no observations"),
        ({"observations": [_nested()] * 9}, 413, "at most 8"),
        ({"observations": _nested()}, 400, "shape"),
        ({"observations": {"a": 1}}, 400, "object"),
        ({"observation": _with(256)}, 400, "[2][3][4]: got 256"),
        ({"observation": _with(-1)}, 400, "[2][3][4]: got -1"),
        ({"observation": _with(1.5)}, 400, "[2][3][4]: got 1.5"),
        ({"observation": _with(1.0)}, 400, "[2][3][4]: got 1.0"),
        ({"observation": _with(True)}, 400, "[2][3][4]: got True"),
        ({"observation": _with("1")}, 400, "[2][3][4]: got '1'"),
        ({"observation": _with(None)}, 400, "[2][3][4]: got None"),
        ({"observation": _with([])}, 400, "[2][3][4]"),
        ({"observation": _with(10**30)}, 400, "[2][3][4]"),
        ({"observation": _nested()[:3]}, 400, "3 frames"),
        ({"observation": [*_nested()[:3], [[0] * 84] * 83]}, 400, "83 rows"),
        ({"observation": np.zeros((84, 84, 4), int).tolist()}, 400, "84 frames"),
        ({"observation": [0] * 28224}, 400, "28224 frames"),
        ({"observation": "AAAA"}, 400, "4 characters"),
        ({"observation": "*" * 37632}, 400, "base64"),
        ({"observation": 3}, 400, "number"),
        ({"observation": _nested(), "mode": "best"}, 400, "greedy or sample"),
        ({"observation": _nested(), "seed": -1}, 400, "seed"),
        ({"observation": _nested(), "seed": 1.0}, 400, "seed"),
        ({"observation": _nested(), "seed": True}, 400, "seed"),
    ],
)
def test_invalid_json_is_refused_with_a_message(
    client: httpx.Client, document: object, status: int, words: str
) -> None:
    answer = client.post("/predict", json=document)
    assert answer.status_code == status, answer.text
    expected = "expected 4" if words == "shape" else words
    assert expected in answer.json()["error"]


def _deep(key: str, depth: int = 990) -> bytes:
    """A complete object nested deeper than the recursion limit."""
    return b'{"%s":%s1%s}' % (key.encode(), b'{"a":' * depth, b"}" * depth)


_DEEP_SHAPE = (
    b'{"inputs":[{"name":"observation","datatype":"UINT8","data":[],"shape":'
    + (b"[" * 990 + b"]" * 990)
    + b"}]}"
)


@pytest.mark.parametrize(
    ("path", "content", "headers", "status"),
    [
        ("/predict", b'{"observation": NaN}', {"content-type": "application/json"}, 400),
        ("/predict", b'{"observation": ', {"content-type": "application/json"}, 400),
        ("/predict", b"[" * 100_000, {"content-type": "application/json"}, 400),
        ("/predict", _deep("observation"), {"content-type": "application/json"}, 400),
        ("/predict", _deep("observations"), {"content-type": "application/json"}, 400),
        ("/predict", _deep("mode"), {"content-type": "application/json"}, 400),
        ("/predict/frames", _deep("frames"), {"content-type": "application/json"}, 400),
        ("/v2/models/mario/infer", _deep("inputs"), {"content-type": "application/json"}, 400),
        ("/v2/models/mario/infer", _deep("id"), {"content-type": "application/json"}, 400),
        ("/v2/models/mario/infer", _DEEP_SHAPE, {"content-type": "application/json"}, 400),
        ("/predict", b"\xff\xfe", {"content-type": "application/json"}, 400),
        ("/predict", b"[]", {"content-type": "application/json"}, 400),
        ("/predict", b"{}", {"content-type": "text/plain"}, 415),
        ("/predict", b"{}", {}, 415),
        (
            "/predict",
            b"{}",
            {"content-type": "application/json", "content-encoding": "gzip"},
            415,
        ),
        ("/predict/raw", b"", BYTES, 400),
        ("/predict/raw", b"\0" * 28223, BYTES, 400),
        ("/predict/raw", b"\0" * 28225, BYTES, 400),
        ("/predict/raw", b"\0" * 28224 * 9, BYTES, 413),
        ("/predict/raw", b"\0" * 28224, {"content-type": "image/png"}, 415),
        ("/predict/raw?mode=best", b"\0" * 28224, BYTES, 400),
        ("/predict/raw?seed=1_0", b"\0" * 28224, BYTES, 400),
        ("/predict/raw?seed=9999999999999999999", b"\0" * 28224, BYTES, 400),
        ("/predict/raw?other=1", b"\0" * 28224, BYTES, 400),
        ("/predict/raw?seed=1&seed=2", b"\0" * 28224, BYTES, 400),
        ("/predict", b"x" * (5 << 20), {"content-type": "application/json"}, 413),
        ("/../../etc/passwd", b"", {}, 404),
        ("/predict/%2e%2e/metrics", b"", {}, 404),
        ("/metrics", b"", {}, 405),
    ],
)
def test_bad_bodies_types_and_paths(
    client: httpx.Client, path: str, content: bytes, headers: dict[str, str], status: int
) -> None:
    answer = client.post(path, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert 10 < len(answer.json()["error"]) < 500
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("path", ["/predict?mode=sample", "/predict?seed=1", "/sessions?seed=1"])
def test_an_option_in_the_wrong_place_is_refused(client: httpx.Client, path: str) -> None:
    asks = {} if path.startswith("/sessions") else {"observation": _nested()}
    answer = client.post(path, json=asks)
    assert answer.status_code == 400
    assert "unknown parameter" in answer.json()["error"]


def test_overload_is_refused_with_retry_after_and_ends(policy: OnnxPolicy) -> None:
    settings = ServingSettings(
        policy=policy.artefact.folder, port=0, max_in_flight=2, body_timeout_seconds=240
    )
    body = random_observations(1).tobytes()
    with running(settings) as url, ExitStack() as held:
        host, port = url.removeprefix("http://").split(":")
        connections = [
            held.enter_context(socket.create_connection((host, int(port)))) for _ in range(2)
        ]
        for connection in connections:
            connection.sendall(
                b"POST /predict/raw HTTP/1.1\r\nHost: localhost\r\nContent-Length: 28224\r\n"
                b"Content-Type: application/octet-stream\r\n\r\n"
            )
        deadline = time.monotonic() + 60
        while (answer := httpx.post(f"{url}/predict/raw", content=body, headers=BYTES)).is_success:
            assert time.monotonic() < deadline, "two requests are held and a third is answered"
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["reason"] == "in_flight"
        assert httpx.get(f"{url}/livez").status_code == 200
        # The requests in flight get their answers; then new ones are accepted.
        for connection in connections:
            connection.sendall(body)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert httpx.post(f"{url}/predict/raw", content=body, headers=BYTES).status_code == 200


def test_health_and_metrics(client: httpx.Client, policy: OnnxPolicy) -> None:
    assert client.get("/livez").status_code == 200
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").json() == {"ready": True, "version": "v1"}
    client.post("/predict", json={})
    client.post("/predict/raw", content=random_observations(2).tobytes(), headers=BYTES)
    page = client.get("/metrics").text
    assert 'mario_serving_requests_total{endpoint="/predict/raw",status="200"}' in page
    assert 'mario_serving_errors_total{endpoint="/predict",reason="observations"}' in page
    assert 'mario_serving_request_seconds_bucket{endpoint="/predict/raw",le="0.0001"}' in page
    assert 'mario_serving_batch_observations_bucket{le="2.0",role="champion"}' in page
    assert f'digest="{policy.artefact.digest}"' in page
    assert 'mario_serving_swaps_total{result="swapped",role="champion"} 1.0' in page


def test_metrics_have_a_separate_port(client: httpx.Client, metrics_port: int) -> None:
    page = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics")
    assert page.status_code == 200
    assert "mario_serving_version_info" in page.text
    assert httpx.get(f"http://127.0.0.1:{metrics_port}/predict").status_code == 404


def test_the_service_imports_nothing_that_trains(policy: OnnxPolicy) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'scipy', 'stable_baselines3', 'gymnasium', 'mario.training',\n"
        "             'mario.demonstrations', 'mario.jobs', 'mario.training.export', 'flows'):\n"
        "    sys.modules[name] = None\n"
        "import serving.service, serving.launcher, serving.policies.registry_source\n"
        "async def inner(scope, receive, send): ...\n"
        "serving.service.service.to_asgi()\n"
        "print('assembled')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"MARIO_SERVING_POLICY": str(policy.artefact.folder), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "assembled" in done.stdout


def test_a_killed_launcher_leaves_no_service(policy: OnnxPolicy) -> None:
    """`mario pipeline` serves its champion for one request; if killed, it leaves no server."""
    port = free_port()
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from serving.launcher import running\n"
            "from serving.settings import ServingSettings\n"
            "with running(ServingSettings(policy=sys.argv[1], port=int(sys.argv[2]))):\n"
            "    print('ready', flush=True)\n"
            "    time.sleep(300)\n",
            str(policy.artefact.folder),
            str(port),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == b"ready\n"
        assert httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
    finally:
        launcher.kill()
        launcher.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            httpx.get(f"http://127.0.0.1:{port}/livez", timeout=2)
        except httpx.TransportError:
            return
        time.sleep(0.2)
    pytest.fail("the service still answers")
