"""The one exception tree; every message says what was got, what was expected, what to do."""

from __future__ import annotations


class MarioError(Exception):
    """Base of every error that a person can mend; the CLI prints it as one line.

    Attributes:
        exit_code: what the command line returns for it (2 = bad input).
    """

    exit_code = 2

    def __str__(self) -> str:
        """Join the parts of a message written over several lines into one."""
        return " ".join(super().__str__().split())


class ConfigError(MarioError):
    """A configuration that cannot be run."""


class ConsoleError(MarioError):
    """The emulated console cannot do what was asked."""


class RomError(ConsoleError):
    """A cartridge image that the console cannot run."""


class SaveStateError(ConsoleError):
    """A save-state that is corrupt or belongs to another console."""


class ArtefactError(MarioError):
    """A policy artefact that is missing, broken, or not the one that was promised."""


class TrainingError(MarioError):
    """Training cannot start or go on."""


class TrainingInterrupted(TrainingError):
    """Training was ended on request, with a checkpoint to go on from."""

    exit_code = 130


class CheckpointError(TrainingError):
    """A checkpoint that is missing, half-written or does not fit."""


class EvaluationError(MarioError):
    """An evaluation or a verdict that cannot be made from what was given."""


class StoreError(MarioError):
    """The database is away, too old, or refuses what was written."""


class RunIsBusy(StoreError):
    """Another process trains this run now."""


class RegistryError(MarioError):
    """A model version or alias that cannot be resolved or moved."""


class RegistryUnavailableError(RegistryError):
    """The registry does not answer now; the same call may succeed later."""


class PromotionConflict(RegistryError):
    """Another promoter was first; the message names the champion that it meets now."""


class ServingError(MarioError):
    """The service cannot start or answer."""


class FlowError(MarioError):
    """Prefect's server, a deployment or a flow run is not what was expected."""


class PolicyCollapsed(MarioError):
    """A training run ended because its policy degenerated (a result, exit code 3)."""

    exit_code = 3
