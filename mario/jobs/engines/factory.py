"""Open the evaluation engine that an experiment names."""

from __future__ import annotations

from contextlib import AbstractContextManager

from mario.config.evaluation import EvaluationConfig
from mario.config.parts import load_part
from mario.jobs.engines.contract import EvaluationEngine, OpenEngine


def open_engine(settings: EvaluationConfig | None) -> AbstractContextManager[EvaluationEngine]:
    """Open an engine; a cluster starts with the first units.

    Args:
        settings: the section `evaluation` of the experiment; None is its default, local.

    Raises:
        EvaluationError: Dask is not installed.
    """
    settings = settings or EvaluationConfig()
    open_part: OpenEngine = load_part("mario.jobs.engines", settings.engine, "open_engine")
    return open_part(settings)
