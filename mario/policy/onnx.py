"""Run a policy artefact with ONNX Runtime, without torch.

Answers do not depend on the batch. Evaluation gives the same records with 1, 2 or 8 parallel
environments, so an observation's logits must be bit-identical in every batch. ONNX Runtime does not
guarantee that: its matrix kernels may sum in another order for another batch size. On the machines
tried (AVX2 and AVX-512, onnxruntime 1.32) a Nature CNN gives the same bits for every batch size
from 1 to 64, and whole batches are 1.3 to 2 times as fast as single observations. So the session is
probed when it is loaded: it answers random observations one at a time and in several batch sizes.
Unless all bits agree, it runs every later batch one observation at a time.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from mario.config.evaluation import ActionSelection
from mario.errors import ArtefactError
from mario.game.smb.observations.contract import Observations
from mario.policy.artefact import Artefact
from mario.policy.manifest import Float32Array, check_observations
from mario.policy.policy import Generators, PolicyOutput, choose, softmax

INPUT_NAME = "observation"
OUTPUT_NAMES = ("logits", "value")
GOLDEN_TOLERANCE = 1e-4
"""Largest difference of a logit or value from the recorded answer that an export may have."""

MAX_BATCH = 64
"""Larger batches are split: beyond 64 the speed stays the same and peak memory grows."""

_PROBE_SIZES = (2, 3, 5, 8, 17, MAX_BATCH)


class OnnxPolicy:
    """A policy artefact behind an ONNX Runtime session; several threads may call it at once.

    Attributes:
        artefact: the artefact it runs.
        actions: the actions it chooses from, in the order of the logits.
        selection: the artefact's action selection.
        frame_skip: console frames that one decision lasts.
        observation: its kind of observation.
        batch_invariant: whether whole batches are run at once.
    """

    def __init__(
        self, artefact: Artefact, *, threads: int = 1, batch_invariant: bool | None = None
    ) -> None:
        """Open a session on a verified artefact.

        Args:
            artefact: from :func:`mario.policy.artefact.load_artefact`.
            threads: threads that one call may use, at least 1.
            batch_invariant: whether whole batches are run at once; None probes the session.

        Raises:
            ArtefactError: the network does not load, or has other inputs and outputs than the
                manifest states.
        """
        if threads < 1:
            raise ArtefactError(f"threads: got {threads}; expected at least 1; correct the setting")
        manifest = artefact.manifest
        self.artefact = artefact
        self.actions = manifest.actions
        self.selection = manifest.action_selection
        self.frame_skip = manifest.frame_skip
        self.observation = manifest.observation.kind
        self._session = _open_session(artefact, threads)
        self._check_contract()
        self.batch_invariant = (
            self._probe_batch_invariance() if batch_invariant is None else batch_invariant
        )

    def infer(self, observations: Observations) -> tuple[Float32Array, Float32Array]:
        """Run the network.

        Args:
            observations: (N, …) of the policy's kind; N may be 0.

        Returns:
            ``logits`` float32 (N, A) and ``values`` float32 (N,).

        Raises:
            ArtefactError: observations of another shape or dtype, or answers that are not finite.
        """
        check_observations(observations, self.observation)
        count = len(observations)
        if count == 0:
            return (
                np.empty((0, len(self.actions)), dtype=np.float32),
                np.empty(0, dtype=np.float32),
            )
        size = MAX_BATCH if self.batch_invariant else 1
        if count <= size:
            logits, values = self._run(observations)
        else:
            parts = [self._run(observations[i : i + size]) for i in range(0, count, size)]
            logits = np.concatenate([part[0] for part in parts])
            values = np.concatenate([part[1] for part in parts])
        if not (np.isfinite(logits).all() and np.isfinite(values).all()):
            raise ArtefactError(
                f"{self.artefact.folder}: got logits or values that are not finite; expected "
                "finite numbers; the weights are broken, promote another version"
            )
        return logits, values

    def act(
        self,
        observations: Observations,
        generator: Generators | None = None,
        *,
        selection: ActionSelection | None = None,
    ) -> PolicyOutput:
        """Choose an action for each observation; see :meth:`mario.policy.policy.Policy.act`."""
        logits, values = self.infer(observations)
        probabilities = softmax(logits) if len(logits) else logits
        actions = choose(probabilities, selection or self.selection, generator)
        return PolicyOutput(actions, probabilities, values)

    def check_golden(self, tolerance: float = GOLDEN_TOLERANCE) -> float:
        """Answer the golden observations and compare with the recorded answers.

        Args:
            tolerance: largest absolute difference of a logit or value that passes.

        Returns:
            The largest absolute difference; 0.0 where the artefact has no golden answers.

        Raises:
            ArtefactError: a difference above the tolerance.
        """
        golden = self.artefact.golden
        if golden is None:
            return 0.0
        logits, values = self.infer(golden.observations)
        difference = float(
            max(np.abs(logits - golden.logits).max(), np.abs(values - golden.values).max())
        )
        if difference > tolerance:
            raise ArtefactError(
                f"{self.artefact.folder}: golden answers differ by {difference:.3g}; expected at "
                f"most {tolerance:.3g}; not the network that was trained, export it again"
            )
        return difference

    def _run(self, observations: Observations) -> tuple[Float32Array, Float32Array]:
        logits, values = self._session.run(
            list(OUTPUT_NAMES), {INPUT_NAME: np.ascontiguousarray(observations)}
        )
        return logits, values

    def _check_contract(self) -> None:
        inputs = {item.name: item for item in self._session.get_inputs()}
        outputs = [item.name for item in self._session.get_outputs()]
        where, kind = self.artefact.folder, self.observation
        input_type = "tensor(uint8)" if kind.dtype == "uint8" else "tensor(float)"
        shape = ", ".join(["N", *map(str, kind.shape)])
        fits = (
            list(inputs) == [INPUT_NAME]
            and inputs[INPUT_NAME].type == input_type
            and tuple(inputs[INPUT_NAME].shape[1:]) == kind.shape
            and not isinstance(inputs[INPUT_NAME].shape[0], int)
            and set(OUTPUT_NAMES) <= set(outputs)
        )
        if not fits:
            described = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs.values())
            raise ArtefactError(
                f"{where}: got a network with inputs {described} and outputs {outputs}; expected "
                f"input observation {input_type} ({shape}) and outputs logits, value; export the "
                "policy again"
            )
        # Declared output shapes may be symbolic, so what counts is what comes out of two rows.
        try:
            logits, values = self._run(kind.zeros(2))
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise ArtefactError(
                f"{where}: the network fails on two observations ({_first_line(error)}); expected "
                "an answer; export the policy again"
            ) from error
        expected = (2, len(self.actions))
        if (
            logits.shape != expected
            or values.shape != (2,)
            or logits.dtype != np.float32
            or values.dtype != np.float32
        ):
            raise ArtefactError(
                f"{where}: got logits {logits.dtype} {logits.shape} and value {values.dtype} "
                f"{values.shape} for two observations; expected float32 {expected} and float32 "
                "(2,); actions in policy.json and network do not fit, export the policy again"
            )

    def _probe_batch_invariance(self) -> bool:
        generator = np.random.default_rng(0)
        shape = (MAX_BATCH, *self.observation.shape)
        observations: Observations = (
            generator.integers(0, 256, shape, dtype=np.uint8)
            if self.observation.dtype == "uint8"
            else generator.standard_normal(shape, dtype=np.float32)
        )
        singles = [self._run(observations[i : i + 1]) for i in range(MAX_BATCH)]
        logits = np.concatenate([single[0] for single in singles])
        values = np.concatenate([single[1] for single in singles])
        for size in _PROBE_SIZES:
            got_logits, got_values = self._run(observations[:size])
            same = np.array_equal(got_logits, logits[:size]) and np.array_equal(
                got_values, values[:size]
            )
            if not same:
                return False
        return True


def _open_session(artefact: Artefact, threads: int) -> Any:
    # Some builds start telemetry on import unless this variable is set.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    # Spinning workers would occupy cores that other processes need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            artefact.onnx, sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise ArtefactError(
            f"{artefact.folder}: got a policy.onnx that does not load ({_first_line(error)}); "
            "expected an ONNX network; export the policy again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
