"""The ASGI application: limits, authentication, routing, errors and metrics around the handlers.

It handles every request before BentoML's own application could: that one answers with a 500 or a
traceback, and labels metrics with whatever path a client sends.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache

from serving.http.authentication import Authenticator, InvalidToken, check_host, check_origin
from serving.http.errors import HttpError
from serving.http.messages import (
    AsgiApp,
    ClientDisconnected,
    Message,
    Receive,
    Request,
    Response,
    Scope,
    Send,
    read_body,
)
from serving.http.rate_limit import RateLimiter
from serving.lifecycle import Lifecycle
from serving.metrics import ServingMetrics
from serving.settings import ServingSettings, is_loopback

logger = logging.getLogger("mario.serving")

Handler = Callable[[Request], Awaitable[Response]]
SocketHandler = Callable[[Scope, Receive, Send], Awaitable[None]]


SMALL_BODY_BYTES = 1 << 10


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint.

    Attributes:
        method: GET, POST or DELETE.
        path: path, with ``{name}`` for a path parameter.
        handler: answers the request.
        public: needs no token and does not count against the rate limit.
        max_body_bytes: largest body; None: 1 KiB for GET, else the limit of the settings.
        counted: a public route that has a rate limit of its own for each address.
    """

    method: str
    path: str
    handler: Handler
    public: bool = False
    max_body_bytes: int | None = None
    counted: bool = False


class Router:
    """Finds the route of a method and a path; paths without parameters in one dictionary lookup."""

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
        """Find a route and the values of its path parameters.

        Raises:
            HttpError: 404, no such path; 405, no such method on this path.
        """
        methods = self._exact.get(path)
        parameters: dict[str, str] = {}
        if methods is None:
            methods, parameters = self._match(path)
        if methods is None:
            raise HttpError(404, "path", "there is nothing at this path; see /docs")
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


class MethodNotAllowed(HttpError):
    """A 405: the path exists, but not with this method."""

    def __init__(self, allowed: list[str]) -> None:
        """Name the methods that are allowed."""
        names = ", ".join(allowed)
        super().__init__(405, "method", f"this path takes {names} only")
        self._allowed = names

    def headers(self) -> list[tuple[bytes, bytes]]:
        """See :class:`HttpError`."""
        return [*super().headers(), (b"allow", self._allowed.encode())]


class Application:
    """The service's ASGI application."""

    def __init__(
        self,
        settings: ServingSettings,
        metrics: ServingMetrics,
        authenticator: Authenticator,
        routes: list[Route],
        *,
        sockets: dict[str, SocketHandler] | None = None,
        inner: AsgiApp,
        parts: Sequence[Lifecycle],
        rate_limit: RateLimiter,
        attempts: RateLimiter,
    ) -> None:
        """Serve ``routes``.

        Args:
            settings: limits and names of the service.
            metrics: counts requests and errors.
            authenticator: checks tokens and cookies.
            routes: all HTTP endpoints.
            sockets: handler of each WebSocket path.
            inner: BentoML's application; it gets only the lifespan events.
            parts: started in the event loop before the first request, stopped after the last.
            rate_limit: limits the requests of a token.
            attempts: limits the log-ins of an address and, separately, its invalid tokens.
        """
        self._settings = settings
        self._host_names = settings.host_names
        self._metrics = metrics
        self._router = Router(routes)
        self._sockets = sockets or {}
        self._inner = inner
        self._parts = parts
        self.authenticator = authenticator
        self._rate_limit = rate_limit
        self._attempts = attempts
        self._in_flight = 0
        metrics.set_reader("in_flight_requests", lambda: self._in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection; see the ASGI specification."""
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
                limit_bytes=self._max_body_bytes(route),
                timeout_seconds=self._settings.body_timeout_seconds,
            )
            response = await route.handler(request)
        except HttpError as error:
            reason = error.reason
            response = _error_response(error)
        except ClientDisconnected:
            self._metrics.get("errors_total", endpoint, "client_gone").inc()
            return
        except Exception:
            # A bug: the client gets a message, the log gets the traceback.
            logger.exception("%s %s failed", request.method, endpoint)
            reason = "internal"
            response = _error_response(
                HttpError(503, reason, "internal error; try again", retry_after_seconds=1)
            )
        finally:
            self._in_flight -= 1
        self._count(endpoint, response.status, reason, request)
        await _send_response(send, response, head=request.method == "HEAD")

    def _max_body_bytes(self, route: Route) -> int:
        default = SMALL_BODY_BYTES if route.method == "GET" else self._settings.max_body_bytes
        return route.max_body_bytes or default

    def _check_headers(self, scope: Scope) -> None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size + len(scope["query_string"]) > self._settings.max_header_bytes:
            raise HttpError(
                431,
                "headers",
                f"got {size} bytes of headers; expected at most {self._settings.max_header_bytes}",
                closes=True,
            )

    def _check_caller(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if not self.authenticator.required and not _is_loopback(_server(scope)):
            # `bentoml serve --host` bypasses the check of the settings.
            raise HttpError(
                403,
                "no_tokens",
                "this service has no tokens, so it answers only its own machine; set "
                "MARIO_SERVING_TOKENS or MARIO_SERVING_TOKENS_FILE",
            )
        if not self.authenticator.required:
            check_host(headers, self._host_names)
        peer = _peer(scope)
        try:
            key = self.authenticator.check(headers, peer)
        except InvalidToken:
            # Not counted with the log-ins: a program with an old token must not lock people out.
            self._attempts.take(f"token {peer}")
            raise
        self._rate_limit.take(key)

    def _admit(self, scope: Scope, request: Request) -> None:
        self._check_caller(scope, request.headers)
        if self._in_flight > self._settings.max_in_flight:
            raise HttpError(
                503,
                "in_flight",
                f"{self._in_flight} requests are already in progress; try again later",
                retry_after_seconds=1,
            )

    def _count(self, endpoint: str, status: int, reason: str | None, request: Request) -> None:
        get = self._metrics.get
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
        except HttpError as error:
            self._metrics.get("errors_total", scope["path"], error.reason).inc()
            await send(
                {
                    "type": "websocket.close",
                    "code": 4000 + error.status,
                    "reason": error.message[:120],
                }
            )


def _server(scope: Scope) -> str:
    """The local address that the client connected to; a Unix socket counts as localhost."""
    server = scope.get("server")
    return str(server[0]) if server and server[1] is not None else "localhost"


@cache
def _is_loopback(host: str) -> bool:
    return is_loopback(host)


def _peer(scope: Scope) -> str:
    """The address of the client."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _error_response(error: HttpError) -> Response:
    return Response(error.status, error.body(), headers=error.headers())


async def _send_response(send: Send, response: Response, *, head: bool) -> None:
    headers = [
        (b"content-type", response.content_type),
        (b"content-length", str(len(response.body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        *response.headers,
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else response.body})
