"""Turns decisions into answers: JSON, and rows of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from serving.http.messages import BYTES, Request, Response, json_response
from serving.policies.engine import Decision


def decision_json(request: Request, decision: Decision) -> Response:
    """Answer with JSON: see :func:`decision_document`."""
    return json_response(decision_document(request, decision))


def decision_document(request: Request, decision: Decision) -> dict[str, Any]:
    """Describe a decision: one prediction an observation, and the version that made them all."""
    actions = decision.version.policy.actions
    predictions = [
        {
            "action": action,
            "action_name": actions[action].name,
            "buttons": actions[action].buttons,
            "probabilities": decision.probabilities[row],
            "value": decision.values[row],
        }
        for row, action in enumerate(decision.actions.tolist())
    ]
    ref = decision.version.ref
    return {
        "predictions": predictions,
        "mode": decision.mode,
        "model": ref.model,
        "version": ref.version,
        "digest": ref.digest,
        "latency_seconds": request.elapsed_seconds(),
    }


def decision_bytes(request: Request, decision: Decision) -> Response:
    """Answer with little-endian rows, and the version in headers.

    A row is: int32 action, int32 button byte, float32 value, float32 × A probabilities.
    """
    buttons = np.array(decision.version.policy.artefact.manifest.button_bytes, dtype="<i4")
    count, width = decision.probabilities.shape
    rows = np.empty((count, 3 + width), dtype="<f4")
    rows[:, 0] = decision.actions.astype("<i4").view("<f4")
    rows[:, 1] = buttons[decision.actions].view("<f4")
    rows[:, 2] = decision.values
    rows[:, 3:] = decision.probabilities
    ref = decision.version.ref
    names = ",".join(action.name for action in decision.version.policy.actions)
    return Response(
        200,
        rows.tobytes(),
        BYTES,
        [
            (b"x-mario-model", ref.model.encode()),
            (b"x-mario-version", ref.version.encode()),
            (b"x-mario-digest", ref.digest.encode()),
            (b"x-mario-mode", decision.mode.encode()),
            (b"x-mario-actions", names.encode()),
            (b"x-mario-latency-seconds", f"{request.elapsed_seconds():.6f}".encode()),
        ],
    )
