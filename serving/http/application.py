"""The ASGI application: limits, tokens, routing, errors and metrics around the handlers.

It stands before everything else that BentoML mounts, so that no request meets code that would
answer with a 500, a traceback, or a metric label made of what a stranger typed.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from serving.http.authentication import Doorkeeper, WrongToken, check_host, check_origin
from serving.http.errors import Refusal
from serving.http.messages import (
    AsgiApp,
    ClientGone,
    Message,
    Receive,
    Request,
    Response,
    Scope,
    Send,
    read_body,
)
from serving.http.rate_limit import RateLimit
from serving.instruments import Instruments
from serving.settings import ServingSettings, is_loopback

logger = logging.getLogger("mario.serving")

Handler = Callable[[Request], Awaitable[Response]]
SocketHandler = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint.

    Attributes:
        method: GET, POST or DELETE.
        path: path with ``{name}`` for a part that may be anything.
        handler: answers the request.
        public: whether it needs no token; such routes are not counted against the rate limit.
        max_body_bytes: largest body; None takes the settings' limit.
        counted: a public route that an address may only use a few times a second.
    """

    method: str
    path: str
    handler: Handler
    public: bool = False
    max_body_bytes: int | None = None
    counted: bool = False


class Router:
    """Finds the route of a method and a path; exact paths by one look into a dictionary."""

    def __init__(self, routes: list[Route]) -> None:
        """Index the routes."""
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[list[str], dict[str, Route]]] = []
        for route in routes:
            methods = self._methods(route.path)
            methods[route.method] = route
            if route.method == "GET":
                methods["HEAD"] = route

    def _methods(self, path: str) -> dict[str, Route]:
        if "{" not in path:
            return self._exact.setdefault(path, {})
        parts = path.split("/")
        for known, methods in self._patterns:
            if known == parts:
                return methods
        self._patterns.append((parts, {}))
        return self._patterns[-1][1]

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """Find a route and the values of its path's parts.

        Raises:
            Refusal: 404, no such path; 405, the path has no such method.
        """
        methods = self._exact.get(path)
        parameters: dict[str, str] = {}
        if methods is None:
            methods, parameters = self._match(path)
        if methods is None:
            raise Refusal(404, "path", "there is nothing at this path; see /docs")
        route = methods.get(method)
        if route is None:
            raise MethodNotAllowed(sorted(methods))
        return route, parameters

    def _match(self, path: str) -> tuple[dict[str, Route] | None, dict[str, str]]:
        parts = path.split("/")
        for pattern, methods in self._patterns:
            if len(pattern) != len(parts):
                continue
            parameters = {}
            for expected, got in zip(pattern, parts, strict=True):
                if expected.startswith("{") and got:
                    parameters[expected[1:-1]] = got
                elif expected != got:
                    break
            else:
                return methods, parameters
        return None, {}


class MethodNotAllowed(Refusal):
    """The path is right and the method is not."""

    def __init__(self, allowed: list[str]) -> None:
        """Refuse with the methods that are allowed."""
        names = ", ".join(allowed)
        super().__init__(405, "method", f"this path takes {names} only")
        self._allowed = names

    def headers(self) -> list[tuple[bytes, bytes]]:
        """See :class:`Refusal`."""
        return [*super().headers(), (b"allow", self._allowed.encode())]


class Part(Protocol):
    """Something that runs for as long as the application does."""

    def start(self) -> None:
        """Start, in the event loop."""

    def stop(self) -> None:
        """Stop."""


class Application:
    """The service's ASGI application."""

    def __init__(
        self,
        settings: ServingSettings,
        instruments: Instruments,
        doorkeeper: Doorkeeper,
        routes: list[Route],
        *,
        sockets: dict[str, SocketHandler] | None = None,
        inner: AsgiApp,
        parts: Sequence[Part],
        rate_limit: RateLimit,
        attempts: RateLimit,
    ) -> None:
        """Serve ``routes``; only the lifespan goes on to ``inner``, BentoML's application.

        ``parts`` are started in the event loop before the first request, and stopped after the
        last. ``rate_limit`` counts what each token asks, ``attempts`` each address's
        log-ins and, apart from them, its wrong tokens.
        """
        self._settings = settings
        self._host_names = settings.host_names
        self._instruments = instruments
        self._router = Router(routes)
        self._sockets = sockets or {}
        self._inner = inner
        self._parts = parts
        self.doorkeeper = doorkeeper
        self._rate_limit = rate_limit
        self._attempts = attempts
        self._in_flight = 0
        instruments.read("in_flight_requests", lambda: self._in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's event; see the ASGI specification."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._serve_socket(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                for part in self._parts:
                    part.start()
            elif message["type"] == "lifespan.shutdown.complete":
                for part in reversed(self._parts):
                    part.stop()
            await send(message)

        await self._inner(scope, receive, send_on)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(
            scope["method"], scope["path"], scope["query_string"], dict(scope["headers"])
        )
        endpoint = "unknown"
        reason: str | None = None
        self._in_flight += 1
        try:
            self._check_headers(scope)
            route, request.parameters = self._router.find(request.method, request.path)
            endpoint = route.path
            if request.method not in ("GET", "HEAD"):
                check_origin(request.headers, self._host_names)
            if not route.public:
                self._admit(scope, request)
            elif route.counted:
                self._attempts.take(_peer(scope))
            request.body = await read_body(
                receive,
                request.headers,
                limit_bytes=route.max_body_bytes or self._settings.max_body_bytes,
                timeout_seconds=self._settings.body_timeout_seconds,
            )
            response = await route.handler(request)
        except Refusal as refusal:
            reason = refusal.reason
            response = Response(refusal.status, refusal.body(), headers=refusal.headers())
        except ClientGone:
            self._instruments.get("errors_total", endpoint, "client_gone").inc()
            return
        except Exception:
            # A bug. The client gets a sentence and may try again; the log gets the traceback.
            logger.exception("%s %s failed", request.method, endpoint)
            reason = "internal"
            sorry = Refusal(
                503, reason, "something went wrong here; try again", retry_after_seconds=1
            )
            response = Response(sorry.status, sorry.body(), headers=sorry.headers())
        finally:
            self._in_flight -= 1
        self._count(endpoint, response.status, reason, request)
        await _send_response(send, response, head=request.method == "HEAD")

    def _check_headers(self, scope: Scope) -> None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size + len(scope["query_string"]) > self._settings.max_header_bytes:
            raise Refusal(
                431,
                "headers",
                f"got {size} bytes of headers; expected at most {self._settings.max_header_bytes}",
                closes=True,
            )

    def _check_caller(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if not self.doorkeeper.required and not _is_loopback(_server(scope)):
            # `bentoml serve --host` listens where it is told without asking the settings.
            raise Refusal(
                403,
                "no_tokens",
                "this service has no tokens, so it answers nobody but its own machine; give it "
                "some (MARIO_SERVING_TOKENS or MARIO_SERVING_TOKENS_FILE)",
            )
        if not self.doorkeeper.required:
            check_host(headers, self._host_names)
        peer = _peer(scope)
        try:
            key = self.doorkeeper.check(headers, peer)
        except WrongToken:
            # Apart from the log-ins: a program with an old token locks no person out.
            self._attempts.take(f"token {peer}")
            raise
        self._rate_limit.take(key)

    def _admit(self, scope: Scope, request: Request) -> None:
        self._check_caller(scope, request.headers)
        if self._in_flight > self._settings.max_in_flight:
            raise Refusal(
                503,
                "in_flight",
                f"{self._in_flight} requests are held already; try again later",
                retry_after_seconds=1,
            )

    def _count(self, endpoint: str, status: int, reason: str | None, request: Request) -> None:
        get = self._instruments.get
        get("requests_total", endpoint, str(status)).inc()
        if reason is not None:
            get("errors_total", endpoint, reason).inc()
        get("request_seconds", endpoint).observe(request.elapsed_seconds())

    async def _serve_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._sockets.get(scope["path"])
        await receive()  # websocket.connect
        if handler is None:
            await send({"type": "websocket.close", "code": 4404, "reason": "no such path"})
            return
        try:
            headers = dict(scope["headers"])
            self._check_caller(scope, headers)
            check_origin(headers, self._host_names)
            await handler(scope, receive, send)
        except Refusal as refusal:
            self._instruments.get("errors_total", scope["path"], refusal.reason).inc()
            await send(
                {
                    "type": "websocket.close",
                    "code": 4000 + refusal.status,
                    "reason": refusal.sentence[:120],
                }
            )


def _server(scope: Scope) -> str:
    """The address of this machine that the client reached; of a Unix socket none."""
    server = scope.get("server")
    return str(server[0]) if server and server[1] is not None else "localhost"


@cache
def _is_loopback(host: str) -> bool:
    return is_loopback(host)


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


async def _send_response(send: Send, response: Response, *, head: bool) -> None:
    headers = [
        (b"content-type", response.content_type),
        (b"content-length", str(len(response.body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        *response.headers,
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else response.body})
