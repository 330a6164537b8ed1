"""Puts one worker together: source, engine, endpoints, application."""

from __future__ import annotations

from mario.errors import ServingError
from serving.application import Application
from serving.endpoints import Endpoints
from serving.engine import Engine
from serving.http import AsgiApp
from serving.instruments import Instruments
from serving.settings import ServingSettings
from serving.sources import FolderSource, PolicySource


def open_source(settings: ServingSettings) -> PolicySource:
    """Open the source that the settings name.

    Raises:
        ServingError: there is none.
    """
    if settings.policy is not None:
        return FolderSource(settings.policy)
    raise ServingError(
        "got no policy folder; expected MARIO_SERVING_POLICY; set it to a policy artefact"
    )


def assemble(settings: ServingSettings, inner: AsgiApp) -> Application:
    """Build the application of one worker around BentoML's own."""
    instruments = Instruments(settings.drift_window)
    engine = Engine(settings, open_source(settings), instruments)
    endpoints = Endpoints(engine, instruments)
    return Application(
        settings,
        instruments,
        endpoints.routes(),
        inner=inner,
        on_startup=engine.start,
        on_shutdown=engine.stop,
    )
