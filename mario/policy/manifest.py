"""The types of ``policy.json``, and the observation statistics that drift is measured by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from mario.config.evaluation import ActionSelection
from mario.errors import ArtefactError, ConfigError
from mario.game.console.contract import UInt8Array
from mario.game.smb.actions import Action
from mario.game.smb.observations.contract import ObservationKind, Observations
from mario.game.smb.observations.factory import kind_of_version
from mario.game.smb.observations.pixels import OBSERVATION

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Float32Array = npt.NDArray[np.float32]


class _Frozen(BaseModel):
    """Base of the manifest's parts: immutable, unknown keys refused, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ObservationSpec(_Frozen):
    """The network's input: one kind of `mario.game.smb.observations`.

    Attributes:
        shape: shape of one observation.
        dtype: its element type.
        preprocessing: version of the kind's definition.
    """

    shape: tuple[int, ...] = OBSERVATION.shape
    dtype: Literal["uint8", "float32"] = OBSERVATION.dtype
    preprocessing: str = OBSERVATION.version

    @classmethod
    def of(cls, kind: ObservationKind) -> Self:
        """Describe a kind."""
        return cls(shape=kind.shape, dtype=kind.dtype, preprocessing=kind.version)

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        kind = self.kind
        if (self.shape, self.dtype) != (kind.shape, kind.dtype):
            raise ValueError(
                f"got {self.dtype} {self.shape}, expected {kind.dtype} {kind.shape} for "
                f"{self.preprocessing}"
            )
        return self

    @property
    def kind(self) -> ObservationKind:
        """The kind with this version."""
        try:
            return kind_of_version(self.preprocessing)
        except ConfigError as error:
            raise ValueError(str(error)) from error


class ObservationStatistics(_Frozen):
    """Distribution of per-observation quantities in training, the reference for drift.

    Brightness is an observation's mean, contrast its standard deviation, both over its newest
    frame (0..255 grey levels).

    Attributes:
        count: observations the statistics were taken from.
        brightness_mean: mean over observations of the brightness.
        brightness_std: standard deviation over observations of the brightness.
        contrast_mean: mean over observations of the contrast.
        contrast_std: standard deviation over observations of the contrast.
        black_share: share of observations whose newest frame is all black, 0..1.
        frozen_share: share of observations whose four frames are all equal, 0..1.
    """

    count: int = Field(ge=1)
    brightness_mean: float = Field(ge=0, le=255)
    brightness_std: float = Field(ge=0, le=255)
    contrast_mean: float = Field(ge=0, le=255)
    contrast_std: float = Field(ge=0, le=255)
    black_share: float = Field(ge=0, le=1)
    frozen_share: float = Field(ge=0, le=1)

    @classmethod
    def of(cls, observations: UInt8Array) -> Self:
        """Measure the statistics of observations uint8 (N, 4, 84, 84), N ≥ 1."""
        check_observations(observations)
        if len(observations) == 0:
            raise ArtefactError(
                "observation statistics: got no observations; expected at least one; "
                "pass observations collected in training"
            )
        features = observation_features(observations)
        return cls(
            count=len(observations),
            brightness_mean=float(features.brightness.mean()),
            brightness_std=float(features.brightness.std()),
            contrast_mean=float(features.contrast.mean()),
            contrast_std=float(features.contrast.std()),
            black_share=float(features.black.mean()),
            frozen_share=float(features.frozen.mean()),
        )


@dataclass(frozen=True)
class ObservationFeatures:
    """Per-observation quantities that drift is measured by.

    Attributes:
        brightness: float64 (N,), mean of the newest frame, 0..255.
        contrast: float64 (N,), standard deviation of the newest frame, 0..127.5.
        black: bool (N,), the newest frame is all zero.
        frozen: bool (N,), all four frames are equal.
    """

    brightness: npt.NDArray[np.float64]
    contrast: npt.NDArray[np.float64]
    black: npt.NDArray[np.bool_]
    frozen: npt.NDArray[np.bool_]


def observation_features(observations: UInt8Array) -> ObservationFeatures:
    """Compute the drift features of observations uint8 (N, 4, 84, 84)."""
    newest = observations[:, -1].reshape(len(observations), -1)
    frozen = np.all(observations[:, 1:] == observations[:, :1], axis=(1, 2, 3))
    return ObservationFeatures(
        brightness=newest.mean(axis=1, dtype=np.float64),
        contrast=newest.std(axis=1, dtype=np.float64),
        black=np.logical_not(newest.any(axis=1)),
        frozen=frozen,
    )


class PolicyManifest(_Frozen):
    """``policy.json``: everything about a policy except its weights.

    Attributes:
        schema_version: version of this document.
        actions: the actions in the order of the network's logits.
        action_selection: how an action is chosen from the logits unless the caller overrides it.
        frame_skip: console frames that one decision lasts.
        observation: the network's input.
        training_config_hash: content hash of the experiment's configuration.
        git_commit: commit of the code that trained it.
        onnx_sha256: SHA-256 of ``policy.onnx``.
        golden_sha256: SHA-256 of ``golden.npz``, or None where there is none.
        task: the task it was trained for, such as ``1-1`` or ``all``.
        training_steps: agent decisions it was trained on.
        training_statistics: observation distribution in training, for drift; None for another
            kind than pixels.
    """

    schema_version: Literal[1] = 1
    actions: tuple[Action, ...] = Field(min_length=1, max_length=256)
    action_selection: ActionSelection = "greedy"
    frame_skip: int = Field(ge=1, le=60)
    observation: ObservationSpec = ObservationSpec()
    training_config_hash: str = Field(min_length=1, max_length=128)
    git_commit: str = Field(min_length=1, max_length=64)
    onnx_sha256: Sha256
    golden_sha256: Sha256 | None = None
    task: str | None = None
    training_steps: int | None = Field(default=None, ge=0)
    training_statistics: ObservationStatistics | None = None

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [action.name for action in self.actions]
        if len(set(names)) != len(names):
            raise ValueError(f"action names must differ, got {names}")
        return self

    @property
    def action_names(self) -> tuple[str, ...]:
        """Action names in the order of the logits."""
        return tuple(action.name for action in self.actions)

    @property
    def button_bytes(self) -> tuple[int, ...]:
        """Button bytes in the order of the logits."""
        return tuple(action.buttons for action in self.actions)


def check_observations(observations: Observations, kind: ObservationKind = OBSERVATION) -> None:
    """Refuse arrays that are not observations (N, …) of a kind.

    Raises:
        ArtefactError: with the shape and dtype that were got.
    """
    if not kind.fits(observations):
        expected = ", ".join(["N", *map(str, kind.shape)])
        raise ArtefactError(
            f"observations: got {observations.dtype} {observations.shape}; expected {kind.dtype} "
            f"({expected}); make them with mario.game.smb.observations.{kind.name}"
        )
