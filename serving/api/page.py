"""The web page at ``/`` with its static files, the card, and the log-in form."""

from __future__ import annotations

import urllib.parse
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from mario.config.levels import LEVEL_NAMES
from serving.http.application import SMALL_BODY_BYTES, Route
from serving.http.authentication import COOKIE_NAME, COOKIE_SECONDS, Authenticator
from serving.http.errors import HttpError, bad_request
from serving.http.messages import Request, Response, json_response
from serving.policies.engine import Engine

_STATIC = Path(__file__).parents[1] / "static"
_STATIC_FILES = {
    "app.js": b"text/javascript; charset=utf-8",
    "docs.js": b"text/javascript; charset=utf-8",
    "style.css": b"text/css; charset=utf-8",
}
_HTML = b"text/html; charset=utf-8"
_FORM = b"application/x-www-form-urlencoded"
#: The page loads nothing from other sites, and no other site may frame it.
_PAGE_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' blob: data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
        b"frame-ancestors 'none'",
    ),
    (b"cache-control", b"no-cache"),
    # Not no-referrer: browsers would then send `Origin: null` with the log-in form.
    (b"referrer-policy", b"same-origin"),
]


class PageEndpoints:
    """Handlers of the web page."""

    def __init__(self, engine: Engine, authenticator: Authenticator) -> None:
        """Describe ``engine``'s champion; log in with ``authenticator``."""
        self._engine = engine
        self._authenticator = authenticator

    def routes(self) -> list[Route]:
        """All routes of this module."""
        return [
            Route("GET", "/", self.index, public=True),
            Route(
                "POST",
                "/login",
                self.login,
                public=True,
                max_body_bytes=SMALL_BODY_BYTES,
                counted=True,
            ),
            Route("GET", "/card", self.card),
            Route("GET", "/static/{name}", self.static),
        ]

    async def index(self, request: Request) -> Response:
        """Send the page, or the log-in form if the request is not authenticated."""
        try:
            self._authenticator.check(request.headers, "")
        except HttpError:
            return page_file("login.html", 401)
        return page_file("index.html")

    async def login(self, request: Request) -> Response:
        """Log in: exchange a token for the page's cookie."""
        request.require_content_type(_FORM)
        try:
            fields = urllib.parse.parse_qs(request.body.decode("ascii"), max_num_fields=4)
        except ValueError:
            raise bad_request("form", "the form is not name=value pairs") from None
        token = fields.get("token", [""])[0].strip()
        cookie = self._authenticator.make_cookie(token.encode())
        if cookie is None:
            page = _file("login.html").replace(b"<!--wrong-->", b"This token is not valid.")
            return Response(401, page, _HTML, list(_PAGE_HEADERS))
        value = (
            f"{COOKIE_NAME}={cookie}; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Strict"
        )
        if request.headers.get(b"x-forwarded-proto") == b"https":
            value += "; Secure"
        return Response(303, b"", headers=[(b"location", b"/"), (b"set-cookie", value.encode())])

    async def static(self, request: Request) -> Response:
        """Send a static file."""
        name = request.parameters["name"]
        if name not in _STATIC_FILES:
            raise HttpError(404, "path", "there is no such file")
        return Response(200, _file(name), _STATIC_FILES[name], list(_PAGE_HEADERS))

    async def card(self, request: Request) -> Response:
        """Describe the version that answers, and name the challenger."""
        version = self._engine.champion.require()
        manifest = version.policy.artefact.manifest
        challenger = self._engine.challenger.current
        card = version.card
        return json_response(
            {
                "model": version.ref.model,
                "version": version.ref.version,
                "digest": version.ref.digest,
                "task": manifest.task,
                "actions": manifest.action_names,
                "action_selection": manifest.action_selection,
                "frame_skip": manifest.frame_skip,
                "training_steps": manifest.training_steps,
                "git_commit": manifest.git_commit,
                "training_config_hash": manifest.training_config_hash,
                "promoted_at": card.promoted_at,
                "reason": card.reason,
                "clear_rates": card.clear_rates,
                "details": card.details,
                "serving_since": datetime.fromtimestamp(version.loaded_at, UTC).isoformat(),
                "challenger": None if challenger is None else challenger.ref.version,
                "last_error": self._engine.champion.last_error,
                "levels": LEVEL_NAMES,
            }
        )


def page_file(name: str, status: int = 200) -> Response:
    """Send an HTML page from the folder ``static``."""
    return Response(status, _file(name), _HTML, list(_PAGE_HEADERS))


@cache
def _file(name: str) -> bytes:
    return (_STATIC / name).read_bytes()
