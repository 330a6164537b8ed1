"""The endpoints that take screens: single requests, and sessions that keep the last four."""

from __future__ import annotations

import asyncio

from mario.game.console.contract import UInt8Array
from serving.api.rendering import describe_output, json_answer
from serving.api.request_parsing import (
    parse_frames_bytes,
    parse_frames_json,
    parse_mode_and_seed,
    parse_query,
)
from serving.http.application import SMALL_BODY_BYTES, Route
from serving.http.json_body import parse_object
from serving.http.messages import BYTES, JSON, Request, Response, json_response
from serving.policies.engine import Engine
from serving.sessions.frames import (
    MAX_PNG_BYTES,
    SCREEN_BYTES,
    STACK,
    frame_from_bytes,
    frame_from_png,
    is_plain_png,
)
from serving.sessions.session_table import SessionTable

PNG = b"image/png"


class SessionEndpoints:
    """Handlers of ``/predict/frames`` and ``/sessions``."""

    def __init__(self, engine: Engine, table: SessionTable) -> None:
        """Answer with ``engine``; keep sessions in ``table``."""
        self._engine = engine
        self._table = table

    def routes(self) -> list[Route]:
        """All routes of this module."""
        one = max(MAX_PNG_BYTES, SCREEN_BYTES)
        return [
            Route("POST", "/predict/frames", self.frames, max_body_bytes=4 << 20),
            Route("POST", "/sessions", self.create, max_body_bytes=SMALL_BODY_BYTES),
            Route("POST", "/sessions/{id}/act", self.act, max_body_bytes=one),
            Route("DELETE", "/sessions/{id}", self.delete, max_body_bytes=SMALL_BODY_BYTES),
        ]

    async def frames(self, request: Request) -> Response:
        """Answer the last four screens."""
        if request.require_content_type(JSON, BYTES) == JSON:
            parse_query(request.query, ())
            inputs = await asyncio.to_thread(parse_frames_json, request.body)
        else:
            inputs = await asyncio.to_thread(parse_frames_bytes, request.body, request.query)
        return json_answer(request, await self._engine.predict(inputs))

    async def create(self, request: Request) -> Response:
        """Start a session."""
        parse_query(request.query, ())
        document = {}
        if request.body:
            request.require_content_type(JSON)
            document = parse_object(request.body, ("mode", "seed"))
        mode, seed = parse_mode_and_seed(document)
        self._engine.champion.require()
        name = self._table.create(self._engine.role_for_session(), mode, seed)
        return json_response(
            {"session": name, "expires_in_seconds": self._table.timeout_seconds},
            201,
            [(b"location", f"/sessions/{name}/act".encode())],
        )

    async def act(self, request: Request) -> Response:
        """Add one screen to a session and answer it."""
        kind = request.require_content_type(PNG, BYTES)
        parse_query(request.query, ())
        with self._table.use(request.parameters["id"]) as session:
            observation = session.push(await self._frame(kind, request.body))
            output = await self._engine.predict_in_session(session, observation)
            document = describe_output(request, output)
            prediction = document.pop("predictions")[0]
            return json_response({**prediction, "frames": min(session.frames, STACK), **document})

    async def delete(self, request: Request) -> Response:
        """End a session."""
        parse_query(request.query, ())
        self._table.delete(request.parameters["id"])
        return json_response({"ended": True})

    @staticmethod
    async def _frame(kind: bytes, body: bytes) -> UInt8Array:
        # Decoding a plain screen takes less time than switching to a thread and back.
        if kind != PNG:
            return frame_from_bytes(body, "the screen")
        if is_plain_png(body):
            return frame_from_png(body, "the screen")
        return await asyncio.to_thread(frame_from_png, body, "the screen")
