"""The Open Inference Protocol v2 over HTTP, with the binary tensor data extension.

See https://github.com/kserve/open-inference-protocol and Triton's ``extension_binary_data.md``.
KServe, Triton's clients and Triton-compatible load generators use it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import orjson

from mario.game.console.contract import UInt8Array
from mario.game.smb.observations.pixels import OBSERVATION_SHAPE
from serving.api.request_parsing import (
    OBSERVATION_BYTES,
    check_count,
    check_lists,
    parse_mode_and_seed,
    parse_query,
)
from serving.http.application import Route
from serving.http.errors import HttpError, bad_request
from serving.http.json_body import parse_object, parse_off_loop, show
from serving.http.messages import BYTES, JSON, Request, Response, json_response
from serving.policies.engine import Engine
from serving.policies.prediction import PredictionInput, PredictionOutput
from serving.policies.version_follower import LoadedVersion

MODEL = "mario"
LENGTH_HEADER = b"inference-header-content-length"
#: The JSON before binary data only names a few tensors.
_MAX_HEADER_BYTES = 64 << 10
_EMPTY_DIMENSIONS = len(OBSERVATION_SHAPE) + 1
#: Parameters that a request may have. Triton's sequences, priorities and time limits are not
#: supported, and refused like any other.
_REQUEST_PARAMETERS = ("binary_data_output", "mode", "seed")

_OUTPUTS: dict[str, tuple[str, Callable[[PredictionOutput], Any]]] = {
    "action": ("INT64", lambda output: output.actions),
    "action_name": ("BYTES", lambda output: np.array([a.name for a in output.chosen], object)),
    "buttons": ("UINT8", lambda output: np.array([a.buttons for a in output.chosen], np.uint8)),
    "probabilities": ("FP32", lambda output: output.probabilities),
    "value": ("FP32", lambda output: output.values),
}


@dataclass(frozen=True)
class _RequestedOutput:
    """One output tensor that the client requests."""

    name: str
    binary: bool


class OpenInferenceEndpoints:
    """Handlers of ``/v2``."""

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
        routes = [
            Route("GET", "/v2", self.server),
            Route("GET", "/v2/health/live", self.live, public=True),
            Route("GET", "/v2/health/ready", self.ready, public=True),
        ]
        for path in (base, base + "/versions/{version}"):
            routes += [
                Route("GET", path, self.model),
                Route("GET", path + "/ready", self.model_ready, public=True),
                Route("POST", path + "/infer", self.infer),
            ]
        return routes

    async def server(self, request: Request) -> Response:
        """Answer with the name and extensions of the server."""
        return json_response(
            {"name": "mario", "version": "1", "extensions": ["binary_tensor_data"]}
        )

    async def live(self, request: Request) -> Response:
        """Answer that the process is alive."""
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        """Answer whether a version is loaded."""
        self._engine.champion.require()
        return json_response({"ready": True})

    async def model_ready(self, request: Request) -> Response:
        """Answer whether the model, in this version, is loaded."""
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
        # Triton's clients send no content type.
        if request.content_type():
            request.require_content_type(JSON, BYTES)
        request.require_plain()
        parse_query(request.query, ())
        self._version(request)
        # Binary data is not parsed; the JSON before it is short, or refused for its length.
        size = 0 if LENGTH_HEADER in request.headers else len(request.body)
        request_id, inputs, tensors = await parse_off_loop(size, self._parse, request)
        output = await self._engine.predict(inputs)
        wanted = request.parameters.get("version")
        if wanted is not None and wanted != output.version.ref.version:
            raise _other_version()
        return _answer(request, request_id, output, tensors)

    def _parse(
        self, request: Request
    ) -> tuple[str | None, PredictionInput, list[_RequestedOutput]]:
        document, binary = _split(request, self._max_lists)
        inputs = self._parse_inputs(document, binary)
        return document.get("id"), inputs, _requested_outputs(document)

    def _version(self, request: Request) -> LoadedVersion:
        version = self._engine.champion.require()
        wanted = request.parameters.get("version")
        if wanted is not None and wanted != version.ref.version:
            raise _other_version()
        return version

    def _parse_inputs(self, document: dict[str, Any], binary: bytes) -> PredictionInput:
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
        mode, seed = parse_mode_and_seed(parameters)
        return PredictionInput(_tensor_data(tensor, shape, binary), mode, seed)


def _other_version() -> HttpError:
    return HttpError(
        404,
        "version",
        "this version does not answer now; leave the version out, or see /v2/models/"
        f"{MODEL} for the one that does",
    )


def _show_shape(shape: object) -> str:
    if not isinstance(shape, list) or len(shape) > 8:
        return show(shape)
    return f"[{', '.join(show(length, 20) for length in shape)}]"


def _split(request: Request, max_lists: int) -> tuple[dict[str, Any], bytes]:
    """Split a body into its JSON document and the binary data after it."""
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
    model = document.get("model_name", MODEL)  # KServe's client repeats the name of the path
    if model != MODEL:
        raise bad_request("model_name", f"model_name: got {show(model)}; expected {MODEL}")
    name = document.get("id")
    if name is not None and (not isinstance(name, str) or len(name) > 256):
        raise bad_request("id", "id: expected a string of at most 256 characters")
    return document, binary


def _tensor_data(tensor: dict[str, Any], shape: list[int], binary: bytes) -> UInt8Array:
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
    # The protocol allows data as a flat list or nested like the shape.
    for length in shape[1:] if isinstance(values, list) and _nested(values) else []:
        if not all(isinstance(item, list) and len(item) == length for item in values):
            raise bad_request(
                "shape", "inputs[0].data: got lists that are not nested like the shape"
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
    """Return the parameters of a request, an input or an output; refuse unknown ones."""
    parameters = owner.get("parameters", {})
    if not isinstance(parameters, dict):
        raise bad_request("parameters", f"{where}: got {show(parameters)}; expected an object")
    for name in parameters:
        if name not in allowed:
            raise bad_request(
                "parameters",
                f"{where}: got the unknown parameter {name[:60]!r}; expected only "
                f"{', '.join(allowed)}",
            )
    return parameters


def _boolean(parameters: dict[str, Any], name: str, where: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise bad_request("parameters", f"{where}.{name}: got {show(value)}; expected a boolean")
    return value


def _requested_outputs(document: dict[str, Any]) -> list[_RequestedOutput]:
    parameters = _parameters(document, "parameters", _REQUEST_PARAMETERS)
    default = _boolean(parameters, "binary_data_output", "parameters", False)
    outputs = document.get("outputs")
    if outputs is None or outputs == []:
        return [_RequestedOutput(name, default) for name in _OUTPUTS]
    if not isinstance(outputs, list) or len(outputs) > len(_OUTPUTS):
        raise bad_request("outputs", f"outputs: expected a list of at most {len(_OUTPUTS)}")
    requested = []
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
        requested.append(
            _RequestedOutput(name, _boolean(own, "binary_data", f"{where}.parameters", default))
        )
    return requested


def _answer(
    request: Request,
    request_id: str | None,
    output: PredictionOutput,
    requested: list[_RequestedOutput],
) -> Response:
    outputs, tail = [], []
    for tensor in requested:
        datatype, get = _OUTPUTS[tensor.name]
        values = get(output)
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": datatype,
            "shape": list(values.shape),
        }
        if tensor.binary:
            tail.append(_to_bytes(values, datatype))
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = values.ravel().tolist() if datatype == "BYTES" else values.ravel()
        outputs.append(entry)
    ref = output.version.ref
    document = {
        "model_name": MODEL,
        "model_version": ref.version,
        **({} if request_id is None else {"id": request_id}),
        "parameters": {
            "digest": ref.digest,
            "mode": output.mode,
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
