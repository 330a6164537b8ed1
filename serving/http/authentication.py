"""Authentication by bearer token or cookie, and the checks of Host and Origin."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Set as AbstractSet
from functools import lru_cache

from serving.http.errors import HttpError
from serving.settings import ServingSettings, is_loopback

logger = logging.getLogger("mario.serving")

COOKIE_NAME = "mario_page"
COOKIE_SECONDS = 12 * 3600
_REREAD_SECONDS = 1.0


class InvalidToken(HttpError):
    """A 401 for a token or cookie that is not valid; it may be a guess."""

    def __init__(self, message: str) -> None:
        """Answer with ``message``."""
        super().__init__(401, "token", message)


class Authenticator:
    """Checks bearer tokens and cookies in constant time, against all tokens that are valid now."""

    def __init__(self, settings: ServingSettings) -> None:
        """Read the tokens.

        Raises:
            ValueError: a token is not allowed, or the tokens file cannot be read.
        """
        self._settings = settings
        self._required = settings.has_tokens
        self._digests = self._read()
        self._read_at = time.monotonic()
        self._stamp = self._file_stamp()

    @property
    def required(self) -> bool:
        """Whether the service has tokens, so that a request needs one."""
        return self._required

    def check(self, headers: dict[bytes, bytes], peer: str) -> str:
        """Authenticate a request by its bearer token or its cookie.

        Args:
            headers: the request's headers.
            peer: the client's address.

        Returns:
            The key that the rate limit counts this client under.

        Raises:
            InvalidToken: 401, the token or the cookie is not valid.
            HttpError: 401, the request has neither.
        """
        if not self._required:
            return peer
        authorization = headers.get(b"authorization", b"")
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() == b"bearer":
            key = self.token_key(token.strip())
            if key is not None:
                return key
            raise InvalidToken("the bearer token is not valid; get a new one")
        cookie = headers.get(b"cookie", b"")
        key = self._cookie_key(cookie)
        if key is not None:
            return key
        if COOKIE_NAME.encode() in cookie:
            raise InvalidToken("the page's cookie is no longer valid; log in at / again")
        raise HttpError(
            401,
            "token",
            "this endpoint needs a token; send the header Authorization: Bearer <token>",
        )

    def token_key(self, token: bytes) -> str | None:
        """Return the key of a token, or None if it is not valid.

        The token is compared with every valid token, by digests of equal length, even after a
        match, so that the time tells nothing about them.
        """
        self._reread()
        digest = hashlib.sha256(token).digest()
        found: bytes | None = None
        for known in self._digests:
            if hmac.compare_digest(digest, known):
                found = known
        return None if found is None else found.hex()[:16]

    def make_cookie(self, token: bytes) -> str | None:
        """Make the page's cookie for a token; None if the token is not valid.

        The cookie expires, and the token cannot be computed from it.
        """
        if self.token_key(token) is None:
            return None
        until = int(time.time()) + COOKIE_SECONDS
        return f"{until}.{self._sign(hashlib.sha256(token).digest(), until)}"

    def _cookie_key(self, header: bytes) -> str | None:
        self._reread()
        for part in header.split(b";"):
            name, _, value = part.strip().partition(b"=")
            if name != COOKIE_NAME.encode():
                continue
            until, _, signature = value.partition(b".")
            if not until.isdigit() or len(until) > 12 or int(until) < time.time():
                continue
            found = None
            for known in self._digests:
                expected = self._sign(known, int(until)).encode()
                if hmac.compare_digest(expected, signature):
                    found = known
            if found is not None:
                return found.hex()[:16]
        return None

    @staticmethod
    def _sign(digest: bytes, until: int) -> str:
        return hmac.new(digest, f"mario-page:{until}".encode(), hashlib.sha256).hexdigest()

    def _read(self) -> tuple[bytes, ...]:
        return tuple(hashlib.sha256(t.encode()).digest() for t in self._settings.token_list())

    def _file_stamp(self) -> tuple[int, int] | None:
        if self._settings.tokens_file is None:
            return None
        try:
            status = self._settings.tokens_file.stat()
        except OSError:
            return None
        return (status.st_mtime_ns, status.st_ino)

    def _reread(self) -> None:
        """Read the tokens file if it changed; keep the former tokens if it is not valid."""
        now = time.monotonic()
        if self._settings.tokens_file is None or now - self._read_at < _REREAD_SECONDS:
            return
        self._read_at = now
        stamp = self._file_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._digests = self._read()
            logger.info("tokens reloaded: %d are valid", len(self._digests))
        except ValueError as error:
            logger.warning("tokens not reloaded, the former ones stay valid: %s", error)


def check_host(headers: dict[bytes, bytes], allowed: AbstractSet[str]) -> None:
    """Refuse a request whose Host header names another machine: protect from DNS rebinding.

    Without tokens, only the browser's same-origin policy keeps the script of another site from
    this service. An attacker evades it by pointing a name of his own to 127.0.0.1 after his page
    was loaded (Jackson et al., 2007); the Host header still holds that name.

    Args:
        headers: the request's headers.
        allowed: further names of this service.

    Raises:
        HttpError: 403.
    """
    host = headers.get(b"host")
    # Every browser sends Host; a client without it is not a browser.
    if host is not None and not _is_known(host) and _name(host) not in allowed:
        raise HttpError(
            403,
            "host",
            "this service has no tokens, so it answers only under a name of its own machine, such "
            "as localhost; add other names to MARIO_SERVING_ALLOWED_HOSTS, or set tokens",
        )


def check_origin(headers: dict[bytes, bytes], allowed: AbstractSet[str]) -> None:
    """Refuse a request from a page of another site: the browser would send our cookie with it.

    Args:
        headers: the request's headers.
        allowed: further names of this service.

    Raises:
        HttpError: 403.
    """
    origin = headers.get(b"origin")
    if origin is None:
        return
    site = origin.partition(b"://")[2].lower()
    if site != headers.get(b"host", b"").lower() and _name(site) not in allowed:
        raise HttpError(
            403,
            "origin",
            "the request comes from a page of another site; if a proxy gives this service another "
            "name, add it to MARIO_SERVING_ALLOWED_HOSTS",
        )


@lru_cache(maxsize=64)
def _is_known(host: bytes) -> bool:
    return is_loopback(_name(host))


def _name(host: bytes) -> str:
    """The name or address in ``name``, ``name:port`` or ``[IPv6]:port``, in lower case."""
    text = host.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
