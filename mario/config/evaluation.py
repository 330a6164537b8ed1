"""How versions are evaluated, and on how many machines."""

from __future__ import annotations

import re
from typing import Literal, Self, get_args

from pydantic import model_validator

from mario.config.section import NonNegativeInt, PositiveInt, Section

#: The evaluation protocol. Another value of a constant below it is another protocol.
PROTOCOL = "mario-eval-v1"
FRAME_SKIP = 4
NO_OP_MAX_FRAMES = 30
STICKY_PROBABILITY = 0.25
MAX_STEPS = 3_000

#: Episodes that a process plays at once, where nothing else is set. It changes no record.
ENVIRONMENTS = 8

#: How a policy chooses: the action of the greatest logit, or one drawn from the distribution.
ActionSelection = Literal["greedy", "sample"]
ACTION_SELECTIONS: tuple[ActionSelection, ...] = get_args(ActionSelection)

_SCHEDULER = re.compile(r"^(tcp|tls|ws|wss)://[^/\s]+:\d+$")


class EvaluationConfig(Section):
    """How a version is evaluated under `mario-eval-v1`, and on how many machines.

    The engine changes no record: a unit's episode depends on policy, level and seed only.
    """

    screening_units: PositiveInt = 20
    environments: PositiveInt = ENVIRONMENTS
    action_selection: ActionSelection = "greedy"
    engine: Literal["local", "dask"] = "local"
    workers: NonNegativeInt = 0  # of a Dask cluster on this machine; 0 = one for each core
    scheduler: str | None = None  # address of a Dask scheduler that runs, with workers of its own

    @model_validator(mode="after")
    def _engine(self) -> Self:
        """Refuse the settings of one engine beside another."""
        if self.engine == "local" and (self.workers or self.scheduler):
            raise ValueError(
                "evaluation.engine: got local beside workers or scheduler, expected dask with "
                "them, or neither of them"
            )
        if self.scheduler is not None and not _SCHEDULER.match(self.scheduler):
            raise ValueError(
                f"evaluation.scheduler: got {self.scheduler!r}, expected an address such as "
                "tcp://10.0.0.5:8786"
            )
        if self.workers and self.scheduler:
            raise ValueError(
                f"evaluation.workers: got {self.workers} beside the scheduler {self.scheduler}, "
                "expected one of them; a scheduler has workers of its own"
            )
        return self
