"""Build the application of one worker from its parts."""

from __future__ import annotations

from serving.api.open_inference import OpenInferenceEndpoints
from serving.api.openapi import OpenApiEndpoints
from serving.api.page import PageEndpoints
from serving.api.predict import PredictEndpoints
from serving.api.sessions import SessionEndpoints
from serving.api.watch_socket import WatchSocket
from serving.http.application import Application
from serving.http.authentication import Authenticator
from serving.http.connection_limits import limit_connections
from serving.http.messages import AsgiApp
from serving.http.metrics_listener import MetricsListener
from serving.http.rate_limit import RateLimiter
from serving.lifecycle import Lifecycle
from serving.metrics import ServingMetrics
from serving.policies.engine import Engine
from serving.policies.sources import FolderSource, PolicySource
from serving.policies.traffic_comparison import ComparisonSink, TrafficComparison
from serving.sessions.session_table import SessionTable
from serving.settings import ServingSettings
from serving.shared_folder import service_folder, use_private_metrics


def open_source(settings: ServingSettings) -> tuple[PolicySource, ComparisonSink | None]:
    """Open the source that the settings name, a folder or the registry, and its comparison sink."""
    if settings.policy is not None:
        return FolderSource(settings.policy), None
    # Imported here, as a service that serves a folder needs no MLflow.
    from serving.policies.registry_source import ComparisonStoreSink, RegistrySource

    source = RegistrySource(settings)
    return source, ComparisonStoreSink(source)


def build_application(settings: ServingSettings, inner: AsgiApp) -> Application:
    """Build the application of one worker around BentoML's own, ``inner``."""
    folder = service_folder()
    use_private_metrics(folder)
    metrics = ServingMetrics(settings.drift_window)
    limit_connections(settings, metrics)
    source, sink = open_source(settings)
    comparison = TrafficComparison(sink, settings.comparison_flush_seconds)
    engine = Engine(settings, source, metrics, comparison)
    table = SessionTable(
        settings.session_file or folder / "sessions",
        settings.max_sessions,
        settings.session_timeout_seconds,
    )
    authenticator = Authenticator(settings)
    routes = [
        *PredictEndpoints(engine, metrics, authenticator).routes(),
        *SessionEndpoints(engine, table).routes(),
        *OpenInferenceEndpoints(engine).routes(),
        *PageEndpoints(engine, authenticator).routes(),
        *OpenApiEndpoints(settings).routes(),
    ]
    metrics.set_reader("sessions", table.count)
    parts: list[Lifecycle] = [engine, metrics]
    if settings.metrics_port:
        parts.append(MetricsListener(settings.host, settings.metrics_port, metrics.page))
    return Application(
        settings,
        metrics,
        authenticator,
        routes,
        sockets={"/watch": WatchSocket(engine, settings.max_watchers, settings.console)},
        inner=inner,
        parts=parts,
        rate_limit=RateLimiter(
            settings.rate_limit_per_second, settings.rate_limit_burst, folder / "rates"
        ),
        attempts=RateLimiter(1, 10, folder / "attempts", what="log-in or wrong token"),
    )
