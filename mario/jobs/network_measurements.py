"""Measure the networks of a gate test for the guards that judge them."""

from __future__ import annotations

import time

import numpy as np

from mario.config.gate import TIMED_GUARDS
from mario.evaluation.guards.contract import Answers, CallTimes
from mario.evaluation.verdict import GuardResult, Verdict
from mario.jobs.policies import LoadedPolicy
from mario.policy.artefact import Golden
from mario.policy.onnx import OnnxPolicy
from mario.store.store import ExperimentStore

#: Observations that both networks answer for the call times, one at a time, in turns.
_TIMED_CALLS = 60
#: Calls before them that do not count.
_WARM_UP_CALLS = 10


def measured_before(
    store: ExperimentStore,
    model: str,
    challenger: LoadedPolicy,
    champion: LoadedPolicy,
    test_key: str,
) -> tuple[GuardResult, ...]:
    """Timed guards' results in the first judgement of this test; empty where there was none."""
    for stored in store.evaluations.verdicts(model):
        sides = (stored.challenger_digest, stored.champion_digest)
        if sides != (challenger.digest, champion.digest):
            continue
        if store.evaluations.test_key(stored) != test_key:
            continue
        guards = Verdict.from_dict(dict(stored.detail)).guards
        timed = tuple(guard for guard in guards if guard.name in TIMED_GUARDS)
        if timed:
            return timed
    return ()


class NetworkMeasurements:
    """The measurements of `mario.evaluation.guards.contract.Networks`, on real artefacts.

    The trained network's answers are the golden ones in the artefact, recorded by torch at export.
    """

    def __init__(
        self, challenger: OnnxPolicy, champion: OnnxPolicy | None, golden: Golden | None
    ) -> None:
        """Measure nothing yet."""
        self._challenger, self._champion, self._golden = challenger, champion, golden

    @classmethod
    def of(cls, challenger: LoadedPolicy, champion: LoadedPolicy) -> NetworkMeasurements | None:
        """Measurements of two policies; None where the challenger is no ONNX network."""
        if challenger.artefact is None or not isinstance(challenger.policy, OnnxPolicy):
            return None
        network = champion.policy if isinstance(champion.policy, OnnxPolicy) else None
        return cls(challenger.policy, network, challenger.artefact.golden)

    def answers(self) -> Answers | None:
        """See `Networks`."""
        if self._golden is None:
            return None
        logits, _ = self._challenger.infer(self._golden.observations)
        return Answers(logits, self._golden.logits)

    def call_times(self) -> CallTimes | None:
        """See `Networks`; the calls take turns, so that a busy moment slows both networks."""
        if self._golden is None or self._champion is None:
            return None
        seconds: tuple[list[float], list[float]] = ([], [])
        observations = self._golden.observations
        for call in range(_WARM_UP_CALLS + _TIMED_CALLS):
            row = call % len(observations)
            for times, policy in zip(seconds, (self._challenger, self._champion), strict=True):
                started = time.perf_counter()
                policy.infer(observations[row : row + 1])
                times.append(time.perf_counter() - started)
        mine, theirs = (np.array(times[_WARM_UP_CALLS:]) for times in seconds)
        return CallTimes(mine, theirs)
