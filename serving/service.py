"""The BentoML service; ``bentoml serve serving.service:service`` starts it.

BentoML provides the processes, the configuration and the build. :mod:`serving.http.application`
answers the requests, before BentoML's own middlewares: those label metrics with whatever path a
client sends, and hold a timer for a minute after every request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _bentoml_sdk import Service
from bentoml import Bento

from serving.bento_code import require_own_code, unload_other_code

unload_other_code()  # before any other import of the project

# isort: split
from serving.settings import ServingSettings  # noqa: E402
from serving.worker import build_application  # noqa: E402

_settings = ServingSettings.from_env()


class MarioService:
    """Super Mario Bros: answers observations with the champion's actions."""


class _ServiceWithOwnApplication(Service):  # type: ignore[misc]
    """A BentoML service whose requests go to the project's own ASGI application."""

    def to_asgi(self, is_main: bool = True) -> Any:
        """Build the ASGI application that a worker process runs."""
        return build_application(_settings, super().to_asgi(is_main))

    def on_load_bento(self, bento: Bento) -> None:
        """Check the code that each process loaded from a built Bento.

        Raises:
            BentoMLException: an imported module is not the Bento's.
        """
        require_own_code(Path(bento.path_of("src")), str(bento.tag))
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
    # The matrix products are small: more threads would only compete for cores.
    envs=[
        {"name": "OMP_NUM_THREADS", "value": "1"},
        {"name": "OPENBLAS_NUM_THREADS", "value": "1"},
    ],
)
