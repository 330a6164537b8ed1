"""The endpoints for predictions, health and metrics."""

from __future__ import annotations

from serving.api.rendering import bytes_answer, json_answer
from serving.api.request_parsing import OBSERVATION_BYTES, parse_predict, parse_query, parse_raw
from serving.http.application import Route
from serving.http.authentication import Authenticator
from serving.http.errors import HttpError
from serving.http.json_body import parse_off_loop
from serving.http.messages import BYTES, Request, Response, json_response
from serving.metrics import ServingMetrics
from serving.policies.engine import Engine


class PredictEndpoints:
    """Handlers of ``/predict``, ``/livez``, ``/readyz`` and ``/metrics``."""

    def __init__(
        self, engine: Engine, metrics: ServingMetrics, authenticator: Authenticator
    ) -> None:
        """Answer with ``engine``; show errors only to clients that ``authenticator`` accepts."""
        self._engine = engine
        self._metrics = metrics
        self._authenticator = authenticator
        self._max_observations = engine.settings.max_observations
        self._max_lists = engine.settings.max_list_observations

    def routes(self) -> list[Route]:
        """All routes of this module."""
        raw_limit = self._max_observations * OBSERVATION_BYTES
        return [
            Route("GET", "/livez", self.live, public=True),
            Route("GET", "/healthz", self.live, public=True),
            Route("GET", "/readyz", self.ready, public=True),
            Route("GET", "/metrics", self.metrics),
            Route("POST", "/predict", self.predict),
            Route("POST", "/predict/raw", self.predict_raw, max_body_bytes=raw_limit),
        ]

    async def live(self, request: Request) -> Response:
        """Answer that the process is alive."""
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        """Answer whether a version is loaded."""
        version = self._engine.champion.current
        if version is None:
            error = self._engine.champion.last_error or "no champion yet"
            if not self._is_authenticated(request):
                # The endpoint is public; only clients with a token may see paths and hosts.
                error = "there is no version to answer with; the log, or a token, shows why"
            raise HttpError(503, "no_version", f"not ready: {error}", retry_after_seconds=2)
        return json_response({"ready": True, "version": version.ref.version})

    def _is_authenticated(self, request: Request) -> bool:
        try:
            self._authenticator.check(request.headers, "")
        except HttpError:
            return False
        return True

    async def metrics(self, request: Request) -> Response:
        """Send the metrics page."""
        body, content_type = self._metrics.page()
        return Response(200, body, content_type.encode())

    async def predict(self, request: Request) -> Response:
        """Answer JSON observations."""
        request.require_content_type(b"application/json")
        parse_query(request.query, ())
        body = request.body
        inputs = await parse_off_loop(
            len(body), parse_predict, body, self._max_observations, self._max_lists
        )
        return json_answer(request, await self._engine.predict(inputs))

    async def predict_raw(self, request: Request) -> Response:
        """Answer raw observations."""
        request.require_content_type(BYTES)
        inputs = parse_raw(request.body, request.query, self._max_observations)
        output = await self._engine.predict(inputs)
        if request.accepts_bytes():
            return bytes_answer(request, output)
        return json_answer(request, output)
