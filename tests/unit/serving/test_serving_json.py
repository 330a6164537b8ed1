"""JSON bodies that are deep, long or full of lists: refused in bounded time, off the loop."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from serving.api import predict as endpoints
from serving.api.request_parsing import PredictionInput, parse_predict
from serving.http.application import Application
from serving.http.errors import HttpError
from serving.http.json_body import INLINE_BYTES, parse_object, parse_off_loop, show
from serving.http.messages import Message
from serving.settings import ServingSettings
from serving.worker import build_application
from tests.support.onnx_networks import random_observations, write_test_artefact

LIMIT = ServingSettings().max_body_bytes


def _closed(opening: str, closing: str, depth: int) -> str:
    return opening * depth + "1" + closing * depth


@pytest.mark.parametrize("depth", [10, 300, 990, 1020, 1100, 5000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
@pytest.mark.parametrize("key", ["observation", "observations", "mode", "seed"])
def test_deep_nesting_is_refused(key: str, opening: str, closing: str, depth: int) -> None:
    rest = "" if key.startswith("observation") else ',"observation":[]'
    body = f'{{"{key}":{_closed(opening, closing, depth)}{rest}}}'.encode()
    with pytest.raises(HttpError) as caught:
        parse_predict(body, 64, 16)
    assert caught.value.status == 400
    assert len(caught.value.message) < 400


def _full(text: str, prefix: str, suffix: str) -> bytes:
    """Repeat a text between two others up to the largest body."""
    count = (LIMIT - len(prefix) - len(suffix)) // (len(text.encode()) + 1)
    return (prefix + ",".join([text] * count) + suffix).encode()


@pytest.mark.parametrize(
    "body",
    [
        _full("{}", '{"observations":[', "]}"),
        _full("[]", '{"observations":[', "]}"),
        _full("0", '{"observations":[', "]}"),
        _full("0", '{"seed":[', "]}"),
        _full('{"a":[]}', '{"mode":[', '],"observation":[]}'),
        _full('""', '{"observations":[', "]}"),
        _full('"a":1', '{"mode":{', "}}"),
        _full('"a":1', "{", "}"),
        _full('"\\\\"', '{"observations":[', "]}"),
    ],
)
def test_too_many_values_are_refused_before_parsing(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(text: bytes) -> object:
        raise AssertionError("it was parsed")

    monkeypatch.setattr("serving.http.json_body.orjson.loads", loads)
    with pytest.raises(HttpError) as caught:
        parse_predict(body, 64, 16)
    assert caught.value.status in (400, 413)


def test_a_repeated_key_among_many_is_found_in_linear_time() -> None:
    """Counting each name separately would take a minute for a quarter of a megabyte."""
    names = [f'"{number}":0' for number in range(3000)]
    body = f'{{"mode":{{{",".join([*names, names[-1]])}}}}}'.encode()
    started = time.process_time()
    with pytest.raises(HttpError, match="'2999' twice"):
        parse_object(body, ("mode",))
    assert time.process_time() - started < 0.2  # 0.002 s; counting each name takes 0.3 s


def test_escaped_quotes_are_not_taken_for_ends_of_strings() -> None:
    texts = ['"', "\\", '\\"', '\\\\"', "a\\", "\\\\", '"\\"\\\\']
    document = {"mode": texts, "seed": {text: text for text in texts}}
    assert parse_object(json.dumps(document).encode(), ("mode", "seed")) == document
    long = json.dumps({"mode": "\\/" * INLINE_BYTES, "seed": '"'}).encode()
    assert parse_object(long, ("mode", "seed"))["seed"] == '"'
    with pytest.raises(HttpError, match="twice"):
        parse_object(long[:-1] + b',"seed":1}', ("mode", "seed"))


def test_lists_are_limited_and_base64_is_not() -> None:
    observations = random_observations(17)
    lists = observations.tolist()
    ask = parse_predict(json.dumps({"observations": lists[:16]}).encode(), 64, 16)
    np.testing.assert_array_equal(ask.observations, observations[:16])
    with pytest.raises(HttpError, match="at most 16") as caught:
        parse_predict(json.dumps({"observations": lists}).encode(), 64, 16)
    assert caught.value.status == 413
    # An indented document is still within the limit.
    wide = json.dumps({"observations": lists[:2]}, indent=2).encode()
    np.testing.assert_array_equal(parse_predict(wide, 64, 16).observations, observations[:2])


def test_messages_show_lists_and_objects_by_type() -> None:
    shown = [show(value) for value in ([[]], {"a": 1}, "a" * 99, True, None, 5, 1.5)]
    assert shown == ["a JSON list", "a JSON object", repr("a" * 40), "True", "None", "5", "1.5"]


def _post(application: Application, path: str, body: bytes, kind: str) -> asyncio.Task[int]:
    statuses: list[int] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def ask() -> int:
        await application(
            {
                "type": "http", "method": "POST", "path": path, "query_string": b"",
                "headers": [(b"content-type", kind.encode()), (b"host", b"localhost")],
                "server": ("127.0.0.1", 3000), "client": ("127.0.0.1", 1),
            },
            receive,
            send,
        )  # fmt: skip
        return statuses[0]

    return asyncio.get_running_loop().create_task(ask())


def test_other_requests_are_answered_while_a_long_body_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parser is held until another client has its answer."""
    folder = write_test_artefact(tmp_path / "v1").folder
    settings = ServingSettings(policy=folder, session_file=tmp_path / "sessions")
    answered, waited = threading.Event(), []

    def parse(body: bytes, max_observations: int, max_lists: int) -> PredictionInput:
        waited.append(answered.wait(60))
        return parse_predict(body, max_observations, max_lists)

    monkeypatch.setattr(endpoints, "parse_predict", parse)

    async def inner(*_: object) -> None: ...

    async def run() -> list[int]:
        application = build_application(settings, inner)
        for part in application._parts:
            part.start()
        observations = random_observations(4)
        long = json.dumps({"observations": observations.tolist()}).encode()
        assert len(long) > INLINE_BYTES
        asks = [_post(application, "/predict", long, "application/json") for _ in range(2)]
        await asyncio.sleep(0)  # both have started
        raw = observations[:1].tobytes()
        kind = "application/octet-stream"
        statuses = [await _post(application, "/predict/raw", raw, kind) for _ in range(3)]
        answered.set()
        statuses += [await ask for ask in asks]
        for part in reversed(application._parts):
            part.stop()
        return statuses

    assert asyncio.run(run()) == [200] * 5
    assert waited == [True, True]


def test_long_bodies_are_parsed_one_after_the_other() -> None:
    at_once, most = [0], [0]

    def parse() -> None:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.01)
        at_once[0] -= 1

    async def run() -> None:
        await asyncio.gather(*(parse_off_loop(INLINE_BYTES + 1, parse) for _ in range(8)))

    asyncio.run(run())
    assert most == [1]
