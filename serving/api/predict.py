"""The endpoints that decide and that tell how the service is."""

from __future__ import annotations

from serving.api.rendering import decision_bytes, decision_json
from serving.api.request_parsing import OBSERVATION_BYTES, parse_predict, parse_query, parse_raw
from serving.http.application import Route
from serving.http.authentication import Doorkeeper
from serving.http.errors import Refusal
from serving.http.json_body import parse_beside
from serving.http.messages import BYTES, Request, Response, json_response
from serving.instruments import Instruments
from serving.policies.engine import Engine

SMALL_BODY_BYTES = 1 << 10


class Endpoints:
    """Handlers around an engine."""

    def __init__(self, engine: Engine, instruments: Instruments, doorkeeper: Doorkeeper) -> None:
        """Answer with ``engine``; ``doorkeeper`` tells who may know why there is no version."""
        self._engine = engine
        self._instruments = instruments
        self._doorkeeper = doorkeeper
        self._max_observations = engine.settings.max_observations
        self._max_lists = engine.settings.max_list_observations

    def routes(self) -> list[Route]:
        """All routes of this module."""
        raw_limit = self._max_observations * OBSERVATION_BYTES
        small = SMALL_BODY_BYTES
        return [
            Route("GET", "/livez", self.live, public=True, max_body_bytes=small),
            Route("GET", "/healthz", self.live, public=True, max_body_bytes=small),
            Route("GET", "/readyz", self.ready, public=True, max_body_bytes=small),
            Route("GET", "/metrics", self.metrics, max_body_bytes=small),
            Route("POST", "/predict", self.predict),
            Route("POST", "/predict/raw", self.predict_raw, max_body_bytes=raw_limit),
        ]

    async def live(self, request: Request) -> Response:
        """Tell that the process answers."""
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        """Tell whether there is a version to answer with."""
        version = self._engine.champion.current
        if version is None:
            error = self._engine.champion.last_error or "no champion yet"
            if not self._known(request):
                # Anybody may ask this; paths and hosts are for those with a token.
                error = "there is no version to answer with; a token, or the log, tells why"
            raise Refusal(503, "no_version", f"not ready: {error}", retry_after_seconds=2)
        return json_response({"ready": True, "version": version.ref.version})

    def _known(self, request: Request) -> bool:
        try:
            self._doorkeeper.check(request.headers, "")
        except Refusal:
            return False
        return True

    async def metrics(self, request: Request) -> Response:
        """Write the metrics page."""
        body, content_type = self._instruments.page()
        return Response(200, body, content_type.encode())

    async def predict(self, request: Request) -> Response:
        """Answer JSON observations."""
        request.require_content_type(b"application/json")
        parse_query(request.query, ())
        body = request.body
        ask = await parse_beside(
            len(body), parse_predict, body, self._max_observations, self._max_lists
        )
        return decision_json(request, await self._engine.decide(ask))

    async def predict_raw(self, request: Request) -> Response:
        """Answer raw observations."""
        request.require_content_type(BYTES)
        ask = parse_raw(request.body, request.query, self._max_observations)
        decision = await self._engine.decide(ask)
        if request.accepts_bytes():
            return decision_bytes(request, decision)
        return decision_json(request, decision)
