"""The OpenAPI document, with examples that work, and the page that shows it."""

from __future__ import annotations

import base64
from functools import cache
from typing import Any

import numpy as np

from mario.config.evaluation import ACTION_SELECTIONS
from serving.api.page import page_file
from serving.api.request_parsing import MAX_SEED, OBSERVATION_BYTES
from serving.http.application import Route
from serving.http.messages import Request, Response, json_response
from serving.sessions.frames import FRAME_BYTES, SCREEN_BYTES, STACK
from serving.settings import ServingSettings

_OBSERVATION_BASE64 = base64.b64encode(bytes(OBSERVATION_BYTES)).decode()
_ERRORS = {
    400: "The request is not valid; the message says what was expected.",
    401: "A bearer token is missing or not valid.",
    403: "The service has no tokens and answers its own machine only.",
    404: "There is nothing of this name.",
    408: "The body did not arrive in time.",
    409: "The session is answering another request.",
    410: "The session expired.",
    413: "The body, or the number of observations, is too large.",
    415: "The content type is not supported.",
    429: "Too many requests or sessions; see Retry-After.",
    431: "The headers are too large.",
    503: "No version is loaded yet, or too many requests wait; see Retry-After.",
}


class OpenApiEndpoints:
    """Handlers of ``/openapi.json`` and ``/docs``."""

    def __init__(self, settings: ServingSettings) -> None:
        """Describe the service with the limits in ``settings``."""
        self._document = document(settings)

    def routes(self) -> list[Route]:
        """All routes of this module."""
        return [
            Route("GET", "/openapi.json", self.openapi),
            Route("GET", "/docs", self.docs),
        ]

    async def openapi(self, request: Request) -> Response:
        """Send the document."""
        return json_response(self._document)

    async def docs(self, request: Request) -> Response:
        """Send the page."""
        return page_file("docs.html")


@cache
def _example_png() -> str:
    """A blank screen as PNG, base64."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((240, 256, 3), np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def document(settings: ServingSettings) -> dict[str, Any]:
    """Build the OpenAPI 3.1 document."""
    paths = {
        **_predict_paths(settings),
        **_session_paths(settings),
        **_inference_paths(),
        **_service_paths(),
    }
    result: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "mario",
            "version": "1",
            "description": "Answers observations with the champion's actions. An "
            "observation is the last four frames, uint8 (4, 84, 84), newest last, as "
            "mario.game.smb.observations.pixels makes them from the screen.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": _schemas(settings),
            "responses": {
                str(status): {
                    "description": text,
                    "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/Error"}}
                    },
                    **({"headers": _RETRY_AFTER} if status in (429, 503) else {}),
                }
                for status, text in _ERRORS.items()
            },
        },
    }
    if settings.has_tokens:
        result["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        result["security"] = [{"token": []}]
    return result


_RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
_BINARY = {"type": "string", "format": "binary"}
_MODE = {"enum": [*ACTION_SELECTIONS]}
_SEED = {"type": "integer", "minimum": 0, "maximum": MAX_SEED}
_QUERY = [
    {"name": "mode", "in": "query", "schema": _MODE},
    {"name": "seed", "in": "query", "schema": _SEED},
]


def _schemas(settings: ServingSettings) -> dict[str, Any]:
    row = {"type": "array", "minItems": 84, "maxItems": 84,
           "items": {"type": "integer", "minimum": 0, "maximum": 255}}  # fmt: skip
    frame = {"type": "array", "minItems": 84, "maxItems": 84, "items": row}
    nested = {"type": "array", "minItems": 4, "maxItems": 4, "items": frame}
    length = len(_OBSERVATION_BASE64)
    text = {"type": "string", "contentEncoding": "base64", "pattern": "^[A-Za-z0-9+/]*$",
            "minLength": length, "maxLength": length}  # fmt: skip
    common = {
        "mode": _MODE, "model": {"type": "string"}, "version": {"type": "string"},
        "digest": {"type": "string"}, "latency_seconds": {"type": "number"},
    }  # fmt: skip
    prediction = {
        "action": {"type": "integer"}, "action_name": {"type": "string"},
        "buttons": {"type": "integer", "minimum": 0, "maximum": 255},
        "probabilities": {"type": "array", "items": {"type": "number"}},
        "value": {"type": "number"},
    }  # fmt: skip
    return {
        "Error": _object({"error": {"type": "string"}, "reason": {"type": "string"}}),
        "Observation": {"oneOf": [text, nested]},
        "Predict": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "observation": {"$ref": "#/components/schemas/Observation"},
                "observations": {
                    "type": "array", "minItems": 1, "maxItems": settings.max_observations,
                    "items": {"$ref": "#/components/schemas/Observation"},
                },
                "mode": _MODE, "seed": _SEED,
            },
            "oneOf": [{"required": ["observation"]}, {"required": ["observations"]}],
        },
        "Prediction": _object(prediction),
        "Predictions": _object(
            {"predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}},
             **common}
        ),
        "SessionPrediction": _object({**prediction, "frames": {"type": "integer"}, **common}),
        "Session": _object(
            {"session": {"type": "string"}, "expires_in_seconds": {"type": "number"}}
        ),
    }  # fmt: skip


def _zeros(count: int, description: str = "") -> dict[str, Any]:
    """Schema of a binary body whose example, a black picture, is ``count`` zero bytes."""
    schema = {**_BINARY, **({"description": description} if description else {})}
    return {"schema": schema, "x-example-zeros": count}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _predict_paths(settings: ServingSettings) -> dict[str, Any]:
    size = f"N × {OBSERVATION_BYTES} bytes, N ≤ {settings.max_observations}"
    png = {"type": "string", "contentEncoding": "base64"}
    frames = {
        "type": "object", "additionalProperties": False, "required": ["frames"],
        "properties": {
            "frames": {"type": "array", "minItems": 4, "maxItems": 4, "items": png},
            "mode": _MODE, "seed": _SEED,
        },
    }  # fmt: skip
    return {
        "/predict": {
            "post": _operation(
                "predict",
                f"Answer one or many observations as JSON: up to {settings.max_observations}, of "
                f"which up to {settings.max_list_observations} as lists of numbers",
                body={"application/json": {
                    "schema": {"$ref": "#/components/schemas/Predict"},
                    "examples": {
                        "one": {"value": {"observation": _OBSERVATION_BASE64}},
                        "sampled": {"value": {"observations": [_OBSERVATION_BASE64],
                                              "mode": "sample", "seed": 7}},
                    },
                }},
                answer="Predictions", errors=(400, 408, 413, 415, 503),
            )
        },
        "/predict/raw": {
            "post": _operation(
                "predict_raw",
                "Answer observations sent as bytes. With Accept: application/octet-stream the "
                "answer is rows of int32 action, int32 buttons, float32 value, float32 × A "
                "probabilities, little-endian, and the version is in X-Mario-* headers",
                parameters=_QUERY,
                body={"application/octet-stream": _zeros(OBSERVATION_BYTES, size)},
                answer="Predictions", errors=(400, 408, 413, 415, 503), bytes_too=True,
            )
        },
        "/predict/frames": {
            "post": _operation(
                "predict_frames",
                "Answer the last four screens, oldest first: PNG in JSON, or 4 × 240 × 256 × 3 "
                "bytes",
                parameters=_QUERY,
                body={
                    "application/json": {
                        "schema": frames,
                        "examples": {"black": {"value": {"frames": [_example_png()] * 4}}},
                    },
                    "application/octet-stream": _zeros(STACK * SCREEN_BYTES),
                },
                answer="Predictions", errors=(400, 408, 413, 415, 503),
            )
        },
    }  # fmt: skip


def _session_paths(settings: ServingSettings) -> dict[str, Any]:
    session = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    options = {"type": "object", "additionalProperties": False,
            "properties": {"mode": _MODE, "seed": _SEED}}  # fmt: skip
    picture = {"schema": _BINARY, "x-example-base64": _example_png()}
    return {
        "/sessions": {
            "post": _operation(
                "create_session",
                f"Start a session, which keeps the last four frames; it expires after "
                f"{settings.session_timeout_seconds:g} s without a request",
                body={"application/json": {"schema": options,
                                           "examples": {"plain": {"value": {}}}}},
                answer="Session", success=201, errors=(400, 408, 413, 415, 429, 503),
                body_required=False,
                links={name: {"operationId": name, "parameters": {"id": "$response.body#/session"}}
                       for name in ("act", "end_session")},
            )
        },
        "/sessions/{id}/act": {
            "post": _operation(
                "act",
                f"Add one screen to the session and answer it: PNG of 256 × 240, or "
                f"{SCREEN_BYTES} bytes (a screen), or {FRAME_BYTES} bytes (a ready frame)",
                parameters=[session],
                body={"image/png": picture, "application/octet-stream": _zeros(FRAME_BYTES)},
                answer="SessionPrediction", errors=(400, 404, 408, 409, 410, 413, 415, 503),
            )
        },
        "/sessions/{id}": {
            "delete": _operation(
                "end_session", "End a session", parameters=[session], answer=None,
                errors=(400, 404, 408, 409, 413),
            )
        },
    }  # fmt: skip


def _inference_paths() -> dict[str, Any]:
    example = {
        "inputs": [{
            "name": "observation", "shape": [1, 4, 84, 84], "datatype": "UINT8",
            "data": [0] * OBSERVATION_BYTES,
        }]
    }  # fmt: skip
    version = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
    length = {
        "name": "Inference-Header-Content-Length", "in": "header",
        "schema": {"type": "integer", "minimum": 0},
        "description": "bytes of JSON before the binary tensor data; required if there is any",
    }  # fmt: skip
    body = {
        "application/json": {
            "schema": {"type": "object", "required": ["inputs"]},
            "examples": {"black": {"value": example}},
        },
        "application/octet-stream": {"schema": _BINARY},
    }
    paths: dict[str, Any] = {
        "/v2": {"get": _operation("server", "Name and extensions of the server", answer=None)},
        "/v2/health/live": {"get": _operation("oip_live", "Liveness", answer=None)},
        "/v2/health/ready": {
            "get": _operation("oip_ready", "Readiness", answer=None, errors=(503,))
        },
    }
    base = "/v2/models/mario"
    for path, suffix, given in ((base, "", []), (base + "/versions/{version}", "_of", [version])):
        errors = (404, 503) if given else (503,)
        paths[path] = {
            "get": _operation("model" + suffix, "Inputs and outputs", answer=None,
                              parameters=given, errors=errors)
        }  # fmt: skip
        paths[path + "/ready"] = {
            "get": _operation("model_ready" + suffix, "Readiness", answer=None,
                              parameters=given, errors=errors)
        }  # fmt: skip
        paths[path + "/infer"] = {
            "post": _operation(
                "infer" + suffix,
                "Open Inference Protocol v2, with the binary tensor data extension",
                parameters=[*given, length], body=body, answer=None, bytes_too=True,
                errors=(400, 404, 408, 413, 415, 503),
            )
        }  # fmt: skip
    return paths


def _service_paths() -> dict[str, Any]:
    return {
        "/livez": {"get": _operation("livez", "Liveness", answer=None)},
        "/healthz": {"get": _operation("healthz", "As /livez", answer=None)},
        "/readyz": {"get": _operation("readyz", "Readiness", answer=None, errors=(503,))},
        "/card": {"get": _operation("card", "Description of the champion", answer=None,
                                    errors=(503,))},
        "/metrics": {"get": _operation("metrics", "Metrics for Prometheus", answer="text")},
    }  # fmt: skip


def _operation(
    name: str,
    summary: str,
    *,
    answer: str | None,
    parameters: list[dict[str, Any]] | None = None,
    body: dict[str, Any] | None = None,
    body_required: bool = True,
    success: int = 200,
    errors: tuple[int, ...] = (),
    bytes_too: bool = False,
    links: dict[str, Any] | None = None,
) -> dict[str, Any]:
    schema = {"type": "object"} if answer is None else {"$ref": f"#/components/schemas/{answer}"}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if answer == "text":
        content = {"text/plain": {"schema": {"type": "string"}}}
    if bytes_too:
        content["application/octet-stream"] = {"schema": _BINARY}
    # Any request may get these: authentication, body and header limits, timeout, rate limit.
    statuses = sorted({*errors, 401, 403, 408, 413, 429, 431})
    result: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "responses": {
            str(success): {
                "description": "The answer.",
                "content": content,
                **({"links": links} if links else {}),
            },
            **{str(s): {"$ref": f"#/components/responses/{s}"} for s in statuses},
        },
    }
    if parameters:
        result["parameters"] = parameters
    if body:
        result["requestBody"] = {"required": body_required, "content": body}
    return result
