"""Guard: the exported network answers like the trained one on recorded observations."""

from __future__ import annotations

import numpy as np

from mario.errors import EvaluationError
from mario.evaluation.guards.contract import GuardInput
from mario.evaluation.verdict import GuardResult


def guard(given: GuardInput) -> tuple[GuardResult, ...]:
    """Refuse an export that differs from the policy that was trained.

    Value: greatest absolute difference of logits (the greatest float where one is not finite).

    Raises:
        EvaluationError: shapes differ or nothing was compared.
    """
    if given.networks is None:
        return ()
    limit = given.rule.max_logit_difference
    answers = given.networks.answers()
    if answers is None:
        missing = "the artefact has no golden answers, so nothing was compared; export it again"
        return (GuardResult("onnx_agreement", False, 0.0, limit, missing),)
    onnx, torch = (np.asarray(logits, np.float64) for logits in answers)
    if onnx.shape != torch.shape or onnx.ndim != 2 or onnx.shape[0] == 0:
        raise EvaluationError(
            f"got logits of shapes {onnx.shape} and {torch.shape}; expected the same (N, A) with "
            "N ≥ 1; answer the same recorded observations with both"
        )
    finite = bool(np.isfinite(onnx).all() and np.isfinite(torch).all())
    worst = float(np.abs(onnx - torch).max()) if finite else float(np.finfo(np.float64).max)
    same = float((onnx.argmax(axis=1) == torch.argmax(axis=1)).mean())
    detail = (
        f"largest difference of logits {worst:.3g} over {onnx.shape[0]} observations; the same "
        f"best action on {same:.1%}"
    )
    return (GuardResult("onnx_agreement", worst <= limit, worst, limit, detail),)
