"""The Open Inference Protocol v2 over HTTP, with the binary tensor data extension.

https://github.com/kserve/open-inference-protocol and Triton's ``extension_binary_data.md``: what
KServe, Triton's clients and Triton-compatible load generators speak.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import orjson

from mario.policy.manifest import OBSERVATION_SHAPE, Uint8Array
from serving.api.request_parsing import (
    OBSERVATION_BYTES,
    Ask,
    check_count,
    check_lists,
    parse_mode,
    parse_query,
    parse_seed,
)
from serving.http.application import Route
from serving.http.errors import Refusal, bad_request
from serving.http.json_body import parse_beside, parse_object, show
from serving.http.messages import BYTES, JSON, Request, Response, json_response
from serving.policies.engine import Decision, Engine
from serving.policies.versions import LoadedVersion

MODEL = "mario"
LENGTH_HEADER = b"inference-header-content-length"
#: The JSON before binary data names a few tensors; it is never long.
_MAX_HEADER_BYTES = 64 << 10
_EMPTY_DIMENSIONS = len(OBSERVATION_SHAPE) + 1
#: What a request may ask for besides tensors. Triton's sequences, priorities and time limits mean
#: something that this service does not do, and are refused like any other.
_REQUEST_PARAMETERS = ("binary_data_output", "mode", "seed")

_OUTPUTS: dict[str, tuple[str, Callable[[Decision], Any]]] = {
    "action": ("INT64", lambda d: d.actions),
    "action_name": (
        "BYTES",
        lambda d: np.array([d.version.policy.actions[a].name for a in d.actions], dtype=object),
    ),
    "buttons": (
        "UINT8",
        lambda d: np.array([d.version.policy.actions[a].buttons for a in d.actions], np.uint8),
    ),
    "probabilities": ("FP32", lambda d: d.probabilities),
    "value": ("FP32", lambda d: d.values),
}


@dataclass(frozen=True)
class _Wish:
    """One output that the client asks for."""

    name: str
    binary: bool


class OpenInference:
    """The protocol's endpoints around an engine."""

    def __init__(self, engine: Engine) -> None:
        """Answer with ``engine``."""
        self._engine = engine
        self._max_observations = engine.settings.max_observations
        self._max_lists = min(
            engine.settings.max_list_observations, engine.settings.max_observations
        )

    def routes(self) -> list[Route]:
        """All routes of the protocol."""
        base = f"/v2/models/{MODEL}"
        small = 1 << 10
        routes = [
            Route("GET", "/v2", self.server, max_body_bytes=small),
            Route("GET", "/v2/health/live", self.live, public=True, max_body_bytes=small),
            Route("GET", "/v2/health/ready", self.ready, public=True, max_body_bytes=small),
        ]
        for path in (base, base + "/versions/{version}"):
            routes += [
                Route("GET", path, self.model, max_body_bytes=small),
                Route("GET", path + "/ready", self.model_ready, public=True, max_body_bytes=small),
                Route("POST", path + "/infer", self.infer),
            ]
        return routes

    async def server(self, request: Request) -> Response:
        """Tell what this server is."""
        return json_response(
            {"name": "mario", "version": "1", "extensions": ["binary_tensor_data"]}
        )

    async def live(self, request: Request) -> Response:
        """Tell that the process answers."""
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        """Tell whether there is a version to answer with."""
        self._engine.champion.require()
        return json_response({"ready": True})

    async def model_ready(self, request: Request) -> Response:
        """Tell whether the model is there."""
        version = self._version(request)
        return json_response({"name": MODEL, "ready": True, "version": version.ref.version})

    async def model(self, request: Request) -> Response:
        """Describe inputs and outputs."""
        version = self._version(request)
        width = len(version.policy.actions)
        return json_response(
            {
                "name": MODEL,
                "versions": [version.ref.version],
                "platform": "onnxruntime_onnx",
                "inputs": [
                    {"name": "observation", "datatype": "UINT8", "shape": [-1, *OBSERVATION_SHAPE]}
                ],
                "outputs": [
                    {
                        "name": name,
                        "datatype": datatype,
                        "shape": [-1, width] if name == "probabilities" else [-1],
                    }
                    for name, (datatype, _) in _OUTPUTS.items()
                ],
                "parameters": {"digest": version.ref.digest, "model": version.ref.model},
            }
        )

    async def infer(self, request: Request) -> Response:
        """Answer observations."""
        # Triton's clients send no content type at all.
        if request.content_type():
            request.require_content_type(JSON, BYTES)
        request.require_plain()
        parse_query(request.query, ())
        self._version(request)
        # Binary data is not looked at; the JSON before it is short, or refused for its length.
        size = 0 if LENGTH_HEADER in request.headers else len(request.body)
        name, ask, wishes = await parse_beside(size, self._parse, request)
        decision = await self._engine.decide(ask)
        wanted = request.parameters.get("version")
        if wanted is not None and wanted != decision.version.ref.version:
            raise self._other_version(wanted)
        return _answer(request, name, decision, wishes)

    def _parse(self, request: Request) -> tuple[str | None, Ask, list[_Wish]]:
        document, binary = _split(request, self._max_lists)
        return document.get("id"), self._ask(document, binary), _wishes(document)

    def _version(self, request: Request) -> LoadedVersion:
        version = self._engine.champion.require()
        wanted = request.parameters.get("version")
        if wanted is not None and wanted != version.ref.version:
            raise self._other_version(wanted)
        return version

    @staticmethod
    def _other_version(wanted: str) -> Refusal:
        return Refusal(
            404,
            "version",
            "this version is not the one that answers; ask without a version, or see /v2/models/"
            f"{MODEL} for the one that does",
        )

    def _ask(self, document: dict[str, Any], binary: bytes) -> Ask:
        inputs = document.get("inputs")
        if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
            raise bad_request("inputs", "inputs: expected a list of one tensor, observation")
        tensor = inputs[0]
        unknown = set(tensor) - {"name", "shape", "datatype", "parameters", "data"}
        if unknown or tensor.get("name") != "observation" or tensor.get("datatype") != "UINT8":
            raise bad_request(
                "inputs",
                "inputs[0]: expected name observation, datatype UINT8, shape, and data or "
                "binary_data_size",
            )
        shape = tensor.get("shape")
        if (
            not isinstance(shape, list)
            or len(shape) != _EMPTY_DIMENSIONS
            or any(type(n) is not int for n in shape)
            or tuple(shape[1:]) != OBSERVATION_SHAPE
            or shape[0] < 0
        ):
            raise bad_request(
                "shape", f"inputs[0].shape: got {_show_shape(shape)}; expected [N, 4, 84, 84]"
            )
        check_count(shape[0], self._max_observations)
        if "data" in tensor:
            check_lists(shape[0], self._max_lists)
        parameters = _parameters(document, "parameters", _REQUEST_PARAMETERS)
        mode, seed = parse_mode(parameters.get("mode")), parse_seed(parameters.get("seed"))
        return Ask(_tensor_data(tensor, shape, binary), mode, seed)


def _show_shape(shape: object) -> str:
    if not isinstance(shape, list) or len(shape) > 8:
        return show(shape)
    return f"[{', '.join(show(length, 20) for length in shape)}]"


def _split(request: Request, max_lists: int) -> tuple[dict[str, Any], bytes]:
    """Split a body into its JSON and the binary data after it."""
    length = request.headers.get(LENGTH_HEADER)
    body = request.body
    if length is None:
        if request.content_type() == BYTES:
            raise bad_request(
                "header_length",
                "got binary data without the header Inference-Header-Content-Length; add it",
            )
        head, binary = body, b""
    else:
        if not length.isdigit() or len(length) > 9 or int(length) > len(body):
            raise bad_request(
                "header_length",
                "Inference-Header-Content-Length: expected the length of the JSON in the body",
            )
        if int(length) > _MAX_HEADER_BYTES:
            raise bad_request(
                "header_length",
                f"got {int(length)} bytes of JSON; expected up to {_MAX_HEADER_BYTES}",
            )
        head, binary = body[: int(length)], body[int(length) :]
    document = parse_object(
        head, ("id", "inputs", "outputs", "parameters", "model_name"), max_lists=max_lists
    )
    model = document.get("model_name", MODEL)  # the path names it; KServe's client says it again
    if model != MODEL:
        raise bad_request("model_name", f"model_name: got {show(model)}; expected {MODEL}")
    name = document.get("id")
    if name is not None and (not isinstance(name, str) or len(name) > 256):
        raise bad_request("id", "id: expected a string of at most 256 characters")
    return document, binary


def _tensor_data(tensor: dict[str, Any], shape: list[int], binary: bytes) -> Uint8Array:
    parameters = _parameters(tensor, "inputs[0].parameters", ("binary_data_size",))
    size = parameters.get("binary_data_size")
    expected = shape[0] * OBSERVATION_BYTES
    if (size is None) == ("data" not in tensor):
        raise bad_request("inputs", "inputs[0]: expected either data or binary_data_size")
    if size is not None:
        if size != expected or type(size) is not int or len(binary) != expected:
            raise bad_request(
                "size",
                f"got binary_data_size {show(size, 20)} and {len(binary)} bytes after the JSON; "
                f"expected {expected} of both",
            )
        return np.frombuffer(binary, dtype=np.uint8).reshape(shape)
    if binary:
        raise bad_request("size", f"got {len(binary)} bytes after the JSON; expected none")
    values = tensor["data"]
    # The protocol allows data as one flat list or nested as the shape says.
    for length in shape[1:] if isinstance(values, list) and _nested(values) else []:
        if not all(isinstance(item, list) and len(item) == length for item in values):
            raise bad_request(
                "shape", "inputs[0].data: got lists that are not nested as shape says"
            )
        values = list(chain.from_iterable(values))
    if not isinstance(values, list) or len(values) != expected:
        raise bad_request("size", f"inputs[0].data: expected {expected} numbers, flat or nested")
    if any(type(value) is not int for value in values):
        raise bad_request("value", "inputs[0].data: expected whole numbers from 0 to 255")
    try:
        return np.frombuffer(bytes(values), dtype=np.uint8).reshape(shape)
    except ValueError:
        raise bad_request("value", "inputs[0].data: expected whole numbers from 0 to 255") from None


def _nested(values: list[Any]) -> bool:
    return bool(values) and isinstance(values[0], list)


def _parameters(owner: dict[str, Any], where: str, allowed: Sequence[str]) -> dict[str, Any]:
    """The parameters of a request, an input or an output; one that is not known is refused."""
    parameters = owner.get("parameters", {})
    if not isinstance(parameters, dict):
        raise bad_request("parameters", f"{where}: got {show(parameters)}; expected an object")
    for name in parameters:
        if name not in allowed:
            raise bad_request(
                "parameters",
                f"{where}: got the unknown parameter {name[:60]!r}; expected none but "
                f"{', '.join(allowed)}",
            )
    return parameters


def _boolean(parameters: dict[str, Any], name: str, where: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise bad_request("parameters", f"{where}.{name}: got {show(value)}; expected a boolean")
    return value


def _wishes(document: dict[str, Any]) -> list[_Wish]:
    parameters = _parameters(document, "parameters", _REQUEST_PARAMETERS)
    default = _boolean(parameters, "binary_data_output", "parameters", False)
    outputs = document.get("outputs")
    if outputs is None or outputs == []:
        return [_Wish(name, default) for name in _OUTPUTS]
    if not isinstance(outputs, list) or len(outputs) > len(_OUTPUTS):
        raise bad_request("outputs", f"outputs: expected a list of at most {len(_OUTPUTS)}")
    wishes = []
    for number, item in enumerate(outputs):
        where = f"outputs[{number}]"
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or name not in _OUTPUTS:
            raise bad_request("outputs", f"{where}: expected a name out of {', '.join(_OUTPUTS)}")
        for key in item:
            if key not in ("name", "parameters"):
                raise bad_request(
                    "outputs", f"{where}: got {key[:60]!r}; expected name and parameters"
                )
        own = _parameters(item, f"{where}.parameters", ("binary_data",))
        wishes.append(_Wish(name, _boolean(own, "binary_data", f"{where}.parameters", default)))
    return wishes


def _answer(
    request: Request, name: str | None, decision: Decision, wishes: list[_Wish]
) -> Response:
    outputs, tail = [], []
    for wish in wishes:
        datatype, get = _OUTPUTS[wish.name]
        values = get(decision)
        output: dict[str, Any] = {
            "name": wish.name,
            "datatype": datatype,
            "shape": list(values.shape),
        }
        if wish.binary:
            tail.append(_to_bytes(values, datatype))
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = values.ravel().tolist() if datatype == "BYTES" else values.ravel()
        outputs.append(output)
    ref = decision.version.ref
    document = {
        "model_name": MODEL,
        "model_version": ref.version,
        **({} if name is None else {"id": name}),
        "parameters": {
            "digest": ref.digest,
            "mode": decision.mode,
            "latency_seconds": request.elapsed_seconds(),
        },
        "outputs": outputs,
    }
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tail:
        return Response(200, head)
    length = (b"inference-header-content-length", str(len(head)).encode())
    return Response(200, b"".join([head, *tail]), BYTES, [length])


def _to_bytes(values: np.ndarray[Any, Any], datatype: str) -> bytes:
    if datatype != "BYTES":
        return values.astype(values.dtype.newbyteorder("<")).tobytes()
    encoded = [str(value).encode() for value in values]
    return b"".join(struct.pack("<I", len(item)) + item for item in encoded)
