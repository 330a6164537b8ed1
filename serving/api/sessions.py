"""The endpoints that take screens: one-off, and in sessions that remember the last four."""

from __future__ import annotations

import asyncio

from mario.policy.manifest import Uint8Array
from serving.api.rendering import decision_document, decision_json
from serving.api.request_parsing import parse_mode, parse_query, parse_seed, parse_seed_text
from serving.http.application import Route
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
    parse_frames_bytes,
    parse_frames_json,
)
from serving.sessions.session_store import SessionTable

PNG = b"image/png"


class SessionEndpoints:
    """Handlers around an engine and a session table."""

    def __init__(self, engine: Engine, table: SessionTable) -> None:
        """Answer with ``engine``; remember in ``table``."""
        self._engine = engine
        self._table = table

    def routes(self) -> list[Route]:
        """All routes of this module."""
        one = max(MAX_PNG_BYTES, SCREEN_BYTES)
        return [
            Route("POST", "/predict/frames", self.frames, max_body_bytes=4 << 20),
            Route("POST", "/sessions", self.create, max_body_bytes=1 << 10),
            Route("POST", "/sessions/{id}/act", self.act, max_body_bytes=one),
            Route("DELETE", "/sessions/{id}", self.delete, max_body_bytes=1 << 10),
        ]

    async def frames(self, request: Request) -> Response:
        """Answer the last four screens."""
        if request.require_content_type(JSON, BYTES) == JSON:
            parse_query(request.query, ())
            ask = await asyncio.to_thread(parse_frames_json, request.body)
        else:
            parameters = parse_query(request.query, ("mode", "seed"))
            seed = parse_seed_text(parameters.get("seed"))
            ask = await asyncio.to_thread(parse_frames_bytes, request.body, parameters, seed)
        return decision_json(request, await self._engine.decide(ask))

    async def create(self, request: Request) -> Response:
        """Start a session."""
        parse_query(request.query, ())
        document = {}
        if request.body:
            request.require_content_type(JSON)
            document = parse_object(request.body, ("mode", "seed"))
        mode, seed = parse_mode(document.get("mode")), parse_seed(document.get("seed"))
        self._engine.champion.require()
        name = self._table.create(self._engine.role_for_session(), mode, seed)
        return json_response(
            {"session": name, "expires_in_seconds": self._table.timeout_seconds},
            201,
            [(b"location", f"/sessions/{name}/act".encode())],
        )

    async def act(self, request: Request) -> Response:
        """Take one screen into a session and answer it."""
        kind = request.require_content_type(PNG, BYTES)
        parse_query(request.query, ())
        with self._table.use(request.parameters["id"]) as session:
            observation = session.push(await self._frame(kind, request.body))
            decision = await self._engine.decide_in_session(session, observation)
            document = decision_document(request, decision)
            prediction = document.pop("predictions")[0]
            return json_response({**prediction, "frames": min(session.frames, STACK), **document})

    async def delete(self, request: Request) -> Response:
        """End a session."""
        parse_query(request.query, ())
        self._table.delete(request.parameters["id"])
        return json_response({"ended": True})

    @staticmethod
    async def _frame(kind: bytes, body: bytes) -> Uint8Array:
        # Most screens are decoded sooner than a thread would be woken up twice.
        if kind != PNG:
            return frame_from_bytes(body, "the screen")
        if is_plain_png(body):
            return frame_from_png(body, "the screen")
        return await asyncio.to_thread(frame_from_png, body, "the screen")
