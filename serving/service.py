"""The BentoML service; ``bentoml serve serving.service:service`` starts it.

BentoML brings the processes, the configuration and the build. Requests are answered by
:mod:`serving.http.application`, which stands before BentoML's own middlewares: those label metrics
with whatever path a stranger typed, and hold a timer for a minute after every request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _bentoml_sdk import Service
from bentoml import Bento

from serving.bento_source import check_code, forget_other_code

forget_other_code()  # before anything of the project is imported: see there

# isort: split
from serving.settings import ServingSettings  # noqa: E402
from serving.worker import assemble  # noqa: E402

_settings = ServingSettings.from_env()


class MarioService:
    """Super Mario Bros: an observation comes in, the champion's action goes out."""


class _ServiceWithOwnApplication(Service):  # type: ignore[misc]
    """A BentoML service whose requests go to the project's own ASGI application."""

    def to_asgi(self, is_main: bool = True) -> Any:
        """Build the ASGI application that a worker process runs."""
        return assemble(_settings, super().to_asgi(is_main))

    def on_load_bento(self, bento: Bento) -> None:
        """Called when the service was loaded from a built Bento, in each process.

        Raises:
            BentoMLException: what was loaded is not the Bento's code.
        """
        check_code(Path(bento.path_of("src")), str(bento.tag))
        super().on_load_bento(bento)


service = _ServiceWithOwnApplication(
    name="mario",
    inner=MarioService,
    description=MarioService.__doc__,
    config={
        "workers": _settings.workers,
        "http": {"host": _settings.host, "port": _settings.port or 3000},
        "metrics": {"enabled": False},
        "logging": {"access": {"enabled": False}},
    },
    # Several threads for one small matrix product only take each other's core away.
    envs=[
        {"name": "OMP_NUM_THREADS", "value": "1"},
        {"name": "OPENBLAS_NUM_THREADS", "value": "1"},
    ],
)
