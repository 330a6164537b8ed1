"""Puts one worker together: source, engine, endpoints, application."""

from __future__ import annotations

from serving.api.live_socket import Watch
from serving.api.open_inference import OpenInference
from serving.api.openapi import ApiDocs
from serving.api.page import Page
from serving.api.predict import Endpoints
from serving.api.sessions import SessionEndpoints
from serving.http.application import Application, Part
from serving.http.authentication import Doorkeeper
from serving.http.limits import guard_connections
from serving.http.messages import AsgiApp
from serving.http.metrics_listener import MetricsPort
from serving.http.rate_limit import RateLimit
from serving.instruments import Instruments
from serving.policies.comparison import Comparer, ComparisonSink
from serving.policies.engine import Engine
from serving.policies.sources import FolderSource, PolicySource
from serving.sessions.session_store import SessionTable
from serving.settings import ServingSettings
from serving.shared_folder import own_metrics, service_folder


def open_source(settings: ServingSettings) -> tuple[PolicySource, ComparisonSink | None]:
    """Open the source that the settings name, a folder or else the registry, and its sink."""
    if settings.policy is not None:
        return FolderSource(settings.policy), None
    # MLflow is large; a service that serves a folder does without it.
    from serving.policies.registry_source import RegistrySource, StoreSink

    source = RegistrySource(settings)
    return source, StoreSink(source)


def assemble(settings: ServingSettings, inner: AsgiApp) -> Application:
    """Build the application of one worker around BentoML's own."""
    folder = service_folder()
    own_metrics(folder)
    instruments = Instruments(settings.drift_window)
    guard_connections(settings, instruments)
    source, sink = open_source(settings)
    comparer = Comparer(sink, settings.comparison_flush_seconds)
    engine = Engine(settings, source, instruments, comparer)
    table = SessionTable(
        settings.session_file or folder / "sessions",
        settings.max_sessions,
        settings.session_timeout_seconds,
    )
    doorkeeper = Doorkeeper(settings)
    routes = [
        *Endpoints(engine, instruments, doorkeeper).routes(),
        *SessionEndpoints(engine, table).routes(),
        *OpenInference(engine).routes(),
        *Page(engine, doorkeeper).routes(),
        *ApiDocs(settings).routes(),
    ]
    instruments.read("sessions", table.count)
    parts: list[Part] = [engine, instruments]
    if settings.metrics_port:
        parts.append(MetricsPort(settings.host, settings.metrics_port, instruments.page))
    return Application(
        settings,
        instruments,
        doorkeeper,
        routes,
        sockets={"/watch": Watch(engine, settings.max_watchers, settings.console)},
        inner=inner,
        parts=parts,
        rate_limit=RateLimit(
            settings.rate_limit_per_second, settings.rate_limit_burst, folder / "rates"
        ),
        attempts=RateLimit(1, 10, folder / "attempts", what="log-in or wrong token"),
    )
