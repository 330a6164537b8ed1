"""What options and an experiment's file say together: task, levels, seeds and evaluation engine."""

from __future__ import annotations

from pydantic import ValidationError

from mario.config.evaluation import EvaluationConfig
from mario.config.experiment import ExperimentConfig
from mario.config.levels import task_levels
from mario.errors import ConfigError, EvaluationError
from mario.evaluation.seeds import SeedFamily

#: The task of a command without --task and --config.
DEFAULT_TASK = "1-1"
#: Families that may be played as often as one likes; `confirmation` belongs to the gate.
OPEN_FAMILIES = (SeedFamily.SELECTION, SeedFamily.SCREENING)


def open_family(name: str) -> SeedFamily:
    """Check the name of a seed family.

    Raises:
        EvaluationError: there is no such family, or only the gate may play it.
    """
    if name not in OPEN_FAMILIES:
        raise EvaluationError(
            f"got seed family {name!r}; expected one of {', '.join(OPEN_FAMILIES)}; "
            "confirmation seeds belong to one test of one challenger; `mario gate` plays them and "
            "spends the α for it"
        )
    return SeedFamily(name)


def task_and_levels(
    task: str | None, config: ExperimentConfig | None
) -> tuple[str, tuple[str, ...]]:
    """Name the task and its levels, from the experiment if there is one.

    Raises:
        ConfigError: the task is not the experiment's, or only an experiment can name its levels.
    """
    if config is None:
        chosen = task or DEFAULT_TASK
        return chosen, task_levels(chosen)
    if task not in (None, config.task):
        raise ConfigError(
            f"got task {task!r} beside an experiment of task {config.task!r}; expected one of "
            "them; leave --task out"
        )
    return config.task, config.level_names


def engine_settings(
    config: ExperimentConfig | None,
    engine: str | None,
    workers: int | None,
    scheduler: str | None,
) -> EvaluationConfig:
    """Choose the evaluation engine: options win over the experiment.

    Args:
        config: the experiment, if one was named.
        engine: ``local`` or ``dask``; None is ``dask`` where workers or a scheduler are given.
        workers: worker processes of a Dask cluster on this machine.
        scheduler: address of a running Dask scheduler.

    Raises:
        ConfigError: the settings contradict one another.
    """
    given = EvaluationConfig() if config is None else config.evaluation
    if engine is None and workers is None and scheduler is None:
        return given
    values = given.model_dump() | {
        "engine": engine or "dask",
        "workers": workers or 0,
        "scheduler": scheduler,
    }
    try:
        return EvaluationConfig.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(
            str(fault["ctx"]["error"])
            if fault["type"] == "value_error"
            else f"--{fault['loc'][0]}: got {fault['input']!r}, expected {fault['ctx']['expected']}"
            for fault in error.errors()
        )
        raise ConfigError(faults) from None
