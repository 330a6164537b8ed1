"""The contract of a policy, and the random policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mario.config.evaluation import FRAME_SKIP, ActionSelection
from mario.game.smb.actions import Action
from mario.game.smb.observations.contract import ObservationKind, Observations
from mario.game.smb.observations.pixels import OBSERVATION
from mario.policy.manifest import Float32Array, check_observations

Generators = np.random.Generator | Sequence[np.random.Generator]
"""One generator for the batch, or one for each row.

With one for each row, an episode's draws do not depend on the other episodes of its batch;
evaluation needs that to give the same records with any number of parallel environments.
"""


@dataclass(frozen=True)
class PolicyOutput:
    """A policy's answer to N observations.

    Attributes:
        actions: int64 (N,), indices into the policy's actions.
        probabilities: float32 (N, A), rows sum to 1.
        values: float32 (N,), the critic's estimate of the return, in scaled reward units.
    """

    actions: npt.NDArray[np.int64]
    probabilities: Float32Array
    values: Float32Array


class Policy(Protocol):
    """Maps observations to actions.

    Attributes:
        actions: the actions it chooses from, in the order of ``PolicyOutput.probabilities``.
        selection: how it chooses unless the caller of :meth:`act` overrides it.
        frame_skip: console frames that one of its decisions lasts.
        observation: its kind of observation.
    """

    actions: tuple[Action, ...]
    selection: ActionSelection
    frame_skip: int
    observation: ObservationKind

    def act(
        self,
        observations: Observations,
        generator: Generators | None = None,
        *,
        selection: ActionSelection | None = None,
    ) -> PolicyOutput:
        """Choose an action for each observation.

        Args:
            observations: (N, …) of the policy's kind; N may be 0.
            generator: source of uniform numbers for sampling, one for the batch or one for each
                row; each row takes one draw. Greedy selection takes none.
            selection: overrides the policy's own selection.

        Returns:
            Actions, probabilities and values, one row for each observation. A row's answer does
            not depend on the other rows.

        Raises:
            ArtefactError: observations of another shape or dtype.
            ValueError: sampling without a generator, or with a wrong number of them.
        """
        ...


def choose(
    probabilities: Float32Array,
    selection: ActionSelection,
    generator: Generators | None,
) -> npt.NDArray[np.int64]:
    """Choose one action per row.

    Sampling inverts the cumulative distribution at one uniform number per row.

    Args:
        probabilities: float32 (N, A), rows sum to 1 within rounding.
        selection: ``greedy`` (first of the most probable) or ``sample``.
        generator: one for the batch or one for each row; unused for ``greedy``.

    Returns:
        int64 (N,), 0..A-1.

    Raises:
        ValueError: sampling without a generator, or with a wrong number of them.
    """
    if selection == "greedy":
        return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)
    count = len(probabilities)
    if generator is None:
        raise ValueError("got no generator; expected one, as actions are sampled; pass a generator")
    if isinstance(generator, np.random.Generator):
        uniforms = generator.random(count)
    elif len(generator) == count:
        uniforms = np.array([source.random() for source in generator], dtype=np.float64)
    else:
        raise ValueError(
            f"got {len(generator)} generators for {count} observations; expected one for each "
            "row, or a single one"
        )
    return sample_at(probabilities, uniforms)


def sample_at(
    probabilities: Float32Array, uniforms: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Sample one action per row by inverting the cumulative distribution.

    Args:
        probabilities: float32 (N, A), rows sum to 1 within rounding.
        uniforms: float64 (N,), in [0, 1).

    Returns:
        int64 (N,), 0..A-1.
    """
    cumulative = np.cumsum(probabilities, axis=1, dtype=np.float64)
    # Scaling by the last column keeps the choice in 0..A-1 where rounding makes the sum not 1.
    chosen = np.sum(cumulative <= uniforms[:, None] * cumulative[:, -1:], axis=1, dtype=np.int64)
    return np.asarray(chosen, dtype=np.int64)


def softmax(logits: npt.NDArray[np.floating]) -> Float32Array:
    """Softmax over the last axis, computed in float64.

    Args:
        logits: (N, A), finite.

    Returns:
        float32 (N, A), rows sum to 1 within 1e-6.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    result: Float32Array = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(
        np.float32
    )
    return result


class RandomPolicy:
    """A policy that chooses uniformly: the baseline that a first champion must beat.

    It ignores what it observes, which are pixels.
    """

    def __init__(self, actions: Sequence[Action], frame_skip: int = FRAME_SKIP) -> None:
        """Choose uniformly from ``actions`` every ``frame_skip`` frames."""
        self.actions = tuple(actions)
        self.selection: ActionSelection = "sample"
        self.frame_skip = frame_skip
        self.observation = OBSERVATION

    def act(
        self,
        observations: Observations,
        generator: Generators | None = None,
        *,
        selection: ActionSelection | None = None,
    ) -> PolicyOutput:
        """Choose uniformly; see :meth:`Policy.act`. ``selection`` greedy always takes action 0."""
        check_observations(observations)
        count, action_count = len(observations), len(self.actions)
        probabilities = np.full((count, action_count), 1 / action_count, dtype=np.float32)
        chosen = choose(probabilities, selection or self.selection, generator)
        return PolicyOutput(chosen, probabilities, np.zeros(count, dtype=np.float32))
