"""Render actions as responses: JSON, or rows of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from serving.http.messages import BYTES, Request, Response, json_response
from serving.policies.prediction import PredictionOutput


def json_answer(request: Request, output: PredictionOutput) -> Response:
    """Make a JSON response; see :func:`describe_output`."""
    return json_response(describe_output(request, output))


def describe_output(request: Request, output: PredictionOutput) -> dict[str, Any]:
    """Describe an output as JSON: one prediction per observation, and the version."""
    predictions = [
        {
            "action": int(output.actions[row]),
            "action_name": action.name,
            "buttons": action.buttons,
            "probabilities": output.probabilities[row],
            "value": output.values[row],
        }
        for row, action in enumerate(output.chosen)
    ]
    ref = output.version.ref
    return {
        "predictions": predictions,
        "mode": output.mode,
        "model": ref.model,
        "version": ref.version,
        "digest": ref.digest,
        "latency_seconds": request.elapsed_seconds(),
    }


def bytes_answer(request: Request, output: PredictionOutput) -> Response:
    """Make a response of little-endian rows, with the version in headers.

    A row is: int32 action, int32 button byte, float32 value, float32 × A probabilities.
    """
    buttons = np.array(output.version.policy.artefact.manifest.button_bytes, dtype="<i4")
    count, width = output.probabilities.shape
    rows = np.empty((count, 3 + width), dtype="<f4")
    rows[:, 0] = output.actions.astype("<i4").view("<f4")
    rows[:, 1] = buttons[output.actions].view("<f4")
    rows[:, 2] = output.values
    rows[:, 3:] = output.probabilities
    ref = output.version.ref
    names = ",".join(action.name for action in output.version.policy.actions)
    return Response(
        200,
        rows.tobytes(),
        BYTES,
        [
            (b"x-mario-model", ref.model.encode()),
            (b"x-mario-version", ref.version.encode()),
            (b"x-mario-digest", ref.digest.encode()),
            (b"x-mario-mode", output.mode.encode()),
            (b"x-mario-actions", names.encode()),
            (b"x-mario-latency-seconds", f"{request.elapsed_seconds():.6f}".encode()),
        ],
    )
