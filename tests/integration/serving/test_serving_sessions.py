"""Screens, sessions, the Open Inference Protocol and the client, with two real workers."""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from mario.client.client import MarioClient
from mario.errors import ServingError
from mario.game.smb.observations.pixels import frame_from_rgb
from mario.policy.onnx import OnnxPolicy
from serving.launcher import running
from serving.settings import ServingSettings
from tests.support.onnx_networks import random_observations, write_test_artefact
from tests.support.serving_load import let_sessions_age

BYTES = {"content-type": "application/octet-stream"}
JSON = {"content-type": "application/json"}
PNG = {"content-type": "image/png"}
SESSION_TIMEOUT_SECONDS = 300.0


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> OnnxPolicy:
    return OnnxPolicy(write_test_artefact(tmp_path_factory.mktemp("policy") / "v1"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the sessions, which the workers share."""
    return tmp_path_factory.mktemp("sessions") / "table"


@pytest.fixture(scope="module")
def url(policy: OnnxPolicy, table: Path) -> Iterator[str]:
    settings = ServingSettings(
        policy=policy.artefact.folder,
        port=0,
        workers=2,
        max_sessions=8,
        session_timeout_seconds=SESSION_TIMEOUT_SECONDS,
        session_file=table,
    )
    with running(settings) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    # Without keep-alive, requests spread over both workers.
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=url, timeout=30, limits=limits) as client:
        yield client


def _screens(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, 30, 32, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


def _png(screen: np.ndarray, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(screen)
    image = image.quantize(256) if mode == "P" else image.convert(mode)
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def _film(screens: np.ndarray) -> bytes:
    """An animated PNG: a decoder that reads only its first picture silently drops the rest."""
    buffer = io.BytesIO()
    first, *rest = [Image.fromarray(screen) for screen in screens]
    first.save(buffer, "PNG", save_all=True, append_images=rest)
    return buffer.getvalue()


def test_four_screens_as_png_and_as_bytes(client: httpx.Client, policy: OnnxPolicy) -> None:
    screens = _screens(4)
    observation = np.stack([frame_from_rgb(screen) for screen in screens])
    expected = policy.act(observation[None])
    frames = [base64.b64encode(_png(screen)).decode() for screen in screens]
    for answer in (
        client.post("/predict/frames", json={"frames": frames}),
        client.post("/predict/frames?mode=greedy", content=screens.tobytes(), headers=BYTES),
    ):
        assert answer.status_code == 200, answer.text
        prediction = answer.json()["predictions"][0]
        assert prediction["action"] == expected.actions[0]
        np.testing.assert_allclose(
            prediction["probabilities"], expected.probabilities[0], atol=1e-6
        )


def test_a_palette_picture_equals_its_colours(client: httpx.Client) -> None:
    screen = _screens(1)[0]
    palette = _png(screen, "P")
    colours = np.asarray(Image.open(io.BytesIO(palette)).convert("RGB"))
    answers = [
        client.post("/predict/frames",
                    json={"frames": [base64.b64encode(data).decode()] * 4}).json()
        for data in (palette, _png(colours))
    ]  # fmt: skip
    assert answers[0]["predictions"] == answers[1]["predictions"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a complete PNG"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "not a complete PNG"),
        (_png(_screens(1)[0])[:-30], "not a complete PNG"),
        (_png(_screens(1)[0][:200]), "256 × 200"),
        (_png(np.zeros((240, 256, 4), np.uint8), "RGBA"), "RGBA"),
        (_png(np.zeros((4000, 4000, 3), np.uint8)), "4000 × 4000"),
        (b"GIF89a" + b"\0" * 100, "not a complete PNG"),
        (_film(_screens(3)), "one of 256 × 240"),
    ],
)
def test_pictures_that_are_not_a_screen_are_refused(
    client: httpx.Client, data: bytes, words: str
) -> None:
    session = client.post("/sessions").json()["session"]
    answer = client.post(f"/sessions/{session}/act", content=data, headers=PNG)
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert client.delete(f"/sessions/{session}").status_code == 200


def test_a_session_stacks_frames_across_both_workers(
    client: httpx.Client, policy: OnnxPolicy
) -> None:
    screens = _screens(7, seed=3)
    session = client.post("/sessions", json={"mode": "greedy"}).json()["session"]
    stack = [frame_from_rgb(screens[0])] * 4
    for i, screen in enumerate(screens):
        frame = frame_from_rgb(screen)
        if i:
            stack = [*stack[1:], frame]
        body, headers = [
            (_png(screen), PNG),
            (screen.tobytes(), BYTES),
            (frame.tobytes(), BYTES),
        ][i % 3]
        answer = client.post(f"/sessions/{session}/act", content=body, headers=headers)
        assert answer.status_code == 200, answer.text
        expected = policy.act(np.stack(stack)[None])
        np.testing.assert_allclose(
            answer.json()["probabilities"], expected.probabilities[0], atol=1e-6
        )
        assert answer.json()["action"] == expected.actions[0]
        assert answer.json()["version"] == "v1"
    assert client.delete(f"/sessions/{session}").json() == {"ended": True}
    answer = client.post(f"/sessions/{session}/act", content=screens[0].tobytes(), headers=BYTES)
    assert answer.status_code == 404


def test_a_seeded_session_samples_the_same_actions(client: httpx.Client) -> None:
    frames = random_observations(8)[:, 0]

    def play(seed: int) -> list[int]:
        session = client.post("/sessions", json={"mode": "sample", "seed": seed}).json()["session"]
        path = f"/sessions/{session}/act"
        actions = [
            client.post(path, content=frame.tobytes(), headers=BYTES).json()["action"]
            for frame in frames
        ]
        client.delete(f"/sessions/{session}")
        return actions

    first, again, other = play(1), play(1), play(2)
    assert first == again
    assert first != other


def test_sessions_are_bounded_and_expire(client: httpx.Client, table: Path) -> None:
    let_sessions_age(table, SESSION_TIMEOUT_SECONDS)  # expire the sessions of other tests
    names = []
    while len(names) < 8:
        names.append(client.post("/sessions").json()["session"])
    answer = client.post("/sessions")
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert "8 sessions" in answer.json()["error"]
    frame = random_observations(1)[0, 0].tobytes()
    mixed = f"/sessions/{names[0][:5]}{names[1][5:]}/act"
    # The secret of another session does not work.
    assert client.post(mixed, content=frame, headers=BYTES).status_code == 404
    let_sessions_age(table, SESSION_TIMEOUT_SECONDS / 2)
    assert client.post("/sessions").status_code == 429
    let_sessions_age(table, SESSION_TIMEOUT_SECONDS / 2)
    expired = client.post(f"/sessions/{names[-1]}/act", content=frame, headers=BYTES)
    assert expired.status_code == 410
    assert "start another" in expired.json()["error"]
    assert client.post("/sessions").status_code == 201
    reused = client.post(f"/sessions/{names[0]}/act", content=frame, headers=BYTES)
    assert reused.status_code == 404
    for bad in ("x", "0" * 37, "zzzzz" + "0" * 32, "..%2f..%2fetc", "00000" + "0" * 32):
        answer = client.post(f"/sessions/{bad}/act", content=frame, headers=BYTES)
        assert answer.status_code in (400, 404), bad


def test_one_session_answers_one_request_at_a_time(url: str) -> None:
    with httpx.Client(base_url=url, timeout=30) as client:
        session = None
        while session is None:
            session = client.post("/sessions").json().get("session")
        body = _screens(1)[0].tobytes()

        def act(_: int) -> int:
            return client.post(f"/sessions/{session}/act", content=body, headers=BYTES).status_code

        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(act, range(60)))
        assert set(statuses) <= {200, 409}
        assert statuses.count(200) >= 1
        answer = client.post(f"/sessions/{session}/act", content=body, headers=BYTES)
        assert answer.status_code == 200
        client.delete(f"/sessions/{session}")


def test_open_inference_protocol_json(client: httpx.Client, policy: OnnxPolicy) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    metadata = client.get("/v2/models/mario").json()
    assert metadata["inputs"] == [
        {"name": "observation", "datatype": "UINT8", "shape": [-1, 4, 84, 84]}
    ]
    observations = random_observations(2)
    expected = policy.act(observations)
    for data in (observations.tolist(), observations.ravel().tolist()):
        tensor = {
            "name": "observation", "shape": [2, 4, 84, 84], "datatype": "UINT8", "data": data
        }  # fmt: skip
        answer = client.post("/v2/models/mario/infer", json={"id": "a1", "inputs": [tensor]})
        assert answer.status_code == 200, answer.text
        document = answer.json()
        assert document["id"] == "a1"
        assert document["model_name"] == "mario"
        assert document["model_version"] == "v1"
        outputs = {output["name"]: output for output in document["outputs"]}
        assert outputs["action"]["data"] == expected.actions.tolist()
        assert outputs["action_name"]["data"] == [policy.actions[a].name for a in expected.actions]
        assert outputs["probabilities"]["shape"] == [2, 7]
        np.testing.assert_allclose(
            outputs["probabilities"]["data"], expected.probabilities.ravel(), atol=1e-6
        )
    for rest in (
        {"model_name": "mario", "parameters": {"mode": "sample", "seed": 3}},
        {"outputs": [{"name": "action", "parameters": {"binary_data": False}}]},
        {"parameters": {"binary_data_output": False}, "outputs": []},
    ):
        answer = client.post("/v2/models/mario/infer", json={"inputs": [tensor], **rest})
        assert answer.status_code == 200, answer.text
    assert client.get("/v2/models/mario/versions/v1").status_code == 200
    assert client.get("/v2/models/mario/versions/v9").status_code == 404
    assert client.get("/v2/models/luigi").status_code == 404


def _infer(tensor: object, **rest: object) -> bytes:
    return json.dumps({"inputs": [tensor], **rest}).encode()


_TENSOR = {"name": "observation", "shape": [1, 4, 84, 84], "datatype": "UINT8"}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"{}", {}),
        (_infer({**_TENSOR, "data": [0] * 28223}), {}),
        (_infer({**_TENSOR, "data": [0.5] * 28224}), {}),
        (_infer({**_TENSOR, "data": [True] * 28224}), {}),
        (_infer({**_TENSOR, "data": [256] * 28224}), {}),
        (_infer({**_TENSOR, "datatype": "FP32", "data": [0] * 28224}), {}),
        (_infer({**_TENSOR, "shape": [1, 84, 84, 4], "data": [0] * 28224}), {}),
        (_infer({**_TENSOR, "shape": [-1, 4, 84, 84], "data": [0] * 28224}), {}),
        (_infer({**_TENSOR, "shape": [10**12, 4, 84, 84], "data": [0]}), {}),
        (_infer({**_TENSOR, "shape": [True, 4, 84, 84], "data": [0] * 28224}), {}),
        (_infer({**_TENSOR, "parameters": {"binary_data_size": 28224}}), {}),
        (_infer({**_TENSOR, "data": [0] * 28224}, outputs=[{"name": "logits"}]), {}),
        (_infer({**_TENSOR, "data": [0] * 28224}, id=5), {}),
        # An unknown parameter is refused, not ignored.
        *(
            (_infer({**_TENSOR, "data": [0] * 28224}, **rest), {})
            for rest in (
                {"model_name": "luigi"},
                {"model_name": ["mario"]},
                {"parameters": {"moed": "sample"}},
                {"parameters": {"mode": "best"}},
                {"parameters": {"seed": [[]]}},
                {"parameters": {"binary_data_output": "yes"}},
                {"parameters": {"binary_data_output": 1}},
                {"parameters": {"sequence_id": 7, "sequence_start": True}},
                {"parameters": {"priority": 1}},
                {"parameters": {"timeout": 1000}},
                {"parameters": []},
                {"outputs": [{"name": "action", "parameters": {"classification": 2}}]},
                {"outputs": [{"name": "action", "parameters": {"binary_data": 1}}]},
                {"outputs": [{"name": "action", "parameters": {"shared_memory_region": "x"}}]},
                {"outputs": [{"name": "action", "datatype": "INT32"}]},
                {"outputs": [{"name": "action", "parameters": None}]},
            )
        ),
        (_infer({**_TENSOR, "data": [0] * 28224, "parameters": {"shared_memory_offset": 0}}), {}),
        (_infer({**_TENSOR, "data": [[[[0]]]], "shape": [17, 4, 84, 84]}), {}),
        (_infer(_TENSOR), {"inference-header-content-length": "x"}),
        (_infer(_TENSOR), {"inference-header-content-length": "99999"}),
        (_infer(_TENSOR), {"inference-header-content-length": "2"}),
        (b"\0" * 100, {"content-type": "application/octet-stream"}),
    ],
)
def test_open_inference_errors(client: httpx.Client, body: bytes, headers: dict[str, str]) -> None:
    answer = client.post(
        "/v2/models/mario/infer",
        content=body,
        headers={"content-type": "application/json"} | headers,
    )
    assert answer.status_code in (400, 413), answer.text
    assert isinstance(answer.json()["error"], str)


def test_compressed_inference_requests_and_unknown_queries_are_refused(
    client: httpx.Client,
) -> None:
    good = _infer({**_TENSOR, "data": [0] * 28224})
    path = "/v2/models/mario/infer"
    # Triton's clients send no content type; that must not let a compressed body through.
    for headers in ({"content-encoding": "gzip"}, {**JSON, "content-encoding": "deflate"}):
        assert client.post(path, content=gzip.compress(good), headers=headers).status_code == 415
    assert client.post(f"{path}?mode=sample", content=good, headers=JSON).status_code == 400
    assert client.post(path, content=good, headers=JSON).status_code == 200


def test_the_triton_client_works_unchanged(url: str, policy: OnnxPolicy) -> None:
    tritonclient = pytest.importorskip("tritonclient.http")
    from tritonclient.utils import InferenceServerException

    observations = random_observations(3)
    expected = policy.act(observations)
    client = tritonclient.InferenceServerClient(url.removeprefix("http://"))
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("mario")
        assert client.get_model_metadata("mario")["platform"] == "onnxruntime_onnx"
        for binary in (True, False):
            tensor = tritonclient.InferInput("observation", [3, 4, 84, 84], "UINT8")
            tensor.set_data_from_numpy(observations, binary_data=binary)
            outputs = [
                tritonclient.InferRequestedOutput(name, binary_data=binary)
                for name in ("action", "action_name", "probabilities", "value")
            ]
            result = client.infer("mario", [tensor], outputs=outputs, request_id="7")
            np.testing.assert_array_equal(result.as_numpy("action"), expected.actions)
            np.testing.assert_allclose(
                result.as_numpy("probabilities"), expected.probabilities, atol=1e-6
            )
            names = [n.decode() if isinstance(n, bytes) else n
                     for n in result.as_numpy("action_name")]  # fmt: skip
            assert names == [policy.actions[a].name for a in expected.actions]
        # All outputs as binary data, and the parameters that this service adds.
        result = client.infer("mario", [tensor], parameters={"mode": "sample", "seed": 1})
        assert result.as_numpy("action").shape == (3,)
        for wish in ({"priority": 1}, {"timeout": 5}, {"sequence_id": 1}):
            with pytest.raises(InferenceServerException, match="unknown parameter"):
                client.infer("mario", [tensor], **wish)
        classes = tritonclient.InferRequestedOutput("probabilities", class_count=2)
        with pytest.raises(InferenceServerException, match="classification"):
            client.infer("mario", [tensor], outputs=[classes])
    finally:
        client.close()


def test_the_client_plays_an_episode(url: str, policy: OnnxPolicy) -> None:
    with MarioClient(url) as client:
        assert client.ready()
        observations = random_observations(3)
        answer = client.predict(observations, mode="greedy")
        np.testing.assert_array_equal(answer.actions, policy.act(observations).actions)
        assert client.card()["version"] == answer.version == "v1"
        episode = client.play("1-1", seed=3, max_steps=40)
        again = client.play("1-1", seed=3, max_steps=40)
        assert episode == again
        assert episode.versions == ("v1",)
        assert 0 < episode.steps <= 40
        with pytest.raises(ServingError, match="got 400"):
            client.predict(observations, mode="best")
    with pytest.raises(ServingError, match="mario serve"):
        MarioClient("http://127.0.0.1:9").predict(observations)


def test_metrics_are_summed_over_the_workers(client: httpx.Client) -> None:
    page = client.get("/metrics").text
    info = [line for line in page.splitlines() if line.startswith("mario_serving_version_info{")]
    assert any(line.endswith(" 2.0") for line in info), info
