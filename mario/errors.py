"""The exceptions of the project; each message says what was got, what was expected, what to do."""

from __future__ import annotations


class MarioError(Exception):
    """Base of every error that the user can fix; the command line prints it as one line.

    Attributes:
        exit_code: exit code of the command line (2: bad input).
    """

    exit_code = 2

    def __str__(self) -> str:
        """Join the parts of a message written over several lines into one."""
        return " ".join(super().__str__().split())


class ConfigError(MarioError):
    """A configuration that cannot be run."""


class ConsoleError(MarioError):
    """The emulated console refuses a call, or cannot be opened."""


class RomError(ConsoleError):
    """A cartridge image that the console cannot run."""


class SaveStateError(ConsoleError):
    """A save-state that is corrupt or belongs to another console."""


class ArtefactError(MarioError):
    """A policy artefact that is missing, broken, or not the expected one."""


class TrainingError(MarioError):
    """Training cannot start or continue."""


class TrainingInterrupted(TrainingError):
    """Training was stopped on request; its checkpoint can be resumed."""

    exit_code = 130


class CheckpointError(TrainingError):
    """A checkpoint that is missing, incomplete, or of another configuration."""


class EvaluationError(MarioError):
    """An evaluation or a verdict whose inputs are missing or inconsistent."""


class StoreError(MarioError):
    """The database is unreachable, too old, or refuses a write."""


class RunIsBusy(StoreError):
    """Another process is training this run."""


class RegistryError(MarioError):
    """A model version or alias that cannot be resolved or moved."""


class RegistryUnavailableError(RegistryError):
    """The registry is unreachable; the same call may succeed later."""


class PromotionConflict(RegistryError):
    """Another process promoted first; the message names the present champion."""


class ServingError(MarioError):
    """The service cannot start or cannot answer."""


class FlowError(MarioError):
    """A Prefect server, deployment or flow run is missing or unreachable."""


class PolicyCollapsed(MarioError):
    """A training run ended because its policy degenerated: a result, with exit code 3."""

    exit_code = 3
