"""The gate's guards that need the networks: agreement with the trained one, and latency."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from mario.evaluation.gate import GuardResult, Verdict
from mario.evaluation.guards import inference_latency, onnx_agreement
from mario.evaluation.rule import GateRule
from mario.game.console.contract import UInt8Array
from mario.jobs.policies import LoadedPolicy
from mario.policy.onnx import OnnxPolicy
from mario.store.store import ExperimentStore

#: Observations that both networks answer for the latency guard, one at a time, taking turns.
_LATENCY_CALLS = 60


def measured_latency(
    store: ExperimentStore,
    model: str,
    challenger: LoadedPolicy,
    champion: LoadedPolicy,
    test_key: str,
) -> GuardResult | None:
    """What the first judgement of this very test measured; None where there was none."""
    for stored in store.evaluations.verdicts(model):
        sides = (stored.challenger_digest, stored.champion_digest)
        if sides != (challenger.digest, champion.digest):
            continue
        if store.evaluations.test_key(stored) != test_key:
            continue
        for guard in Verdict.from_dict(dict(stored.detail)).guards:
            if guard.name == "inference_latency":
                return guard
    return None


def network_guards(
    challenger: LoadedPolicy,
    champion: LoadedPolicy,
    rule: GateRule,
    *,
    latency: GuardResult | None = None,
) -> tuple[GuardResult, ...]:
    """Guards that look at the networks: the export answers as trained, and fast enough.

    The trained network's answers are the golden ones in the artefact, recorded by torch at export.
    The random policy has no network, so nothing is compared with it. A challenger that is no ONNX
    network has no such guards; `mario.evaluation.gate.decide` then says in the verdict that they
    were not run.

    Args:
        challenger: who is judged.
        champion: who is faster or slower.
        rule: gives the limits.
        latency: what was measured before for the same test; None measures now.
    """
    artefact = challenger.artefact
    if artefact is None or not isinstance(challenger.policy, OnnxPolicy):
        return ()
    golden = artefact.golden
    if golden is None:
        missing = "the artefact has no golden answers, so nothing was compared; export it again"
        return (GuardResult("onnx_agreement", False, 0.0, rule.max_logit_difference, missing),)
    logits, _ = challenger.policy.infer(golden.observations)
    guards = [onnx_agreement(logits, golden.logits, rule)]
    if latency is not None:
        guards.append(latency)
    elif isinstance(champion.policy, OnnxPolicy):
        guards.append(
            inference_latency(
                *_interleaved_seconds(challenger.policy, champion.policy, golden.observations), rule
            )
        )
    return tuple(guards)


def _interleaved_seconds(
    first: OnnxPolicy, second: OnnxPolicy, observations: UInt8Array
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Time single answers of two networks in turns, so that a busy moment meets both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for call in range(_LATENCY_CALLS + 10):
        row = call % len(observations)
        for times, policy in zip(seconds, (first, second), strict=True):
            started = time.perf_counter()
            policy.infer(observations[row : row + 1])
            times.append(time.perf_counter() - started)
    return np.array(seconds[0][10:]), np.array(seconds[1][10:])
