"""Who may ask: bearer tokens, the page's cookie, and which names and sites a browser comes by."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Set as AbstractSet
from functools import lru_cache

from serving.http.errors import Refusal
from serving.settings import ServingSettings, is_loopback

logger = logging.getLogger("mario.serving")

COOKIE_NAME = "mario_page"
COOKIE_SECONDS = 12 * 3600
_REREAD_SECONDS = 1.0


class WrongToken(Refusal):
    """A 401 for credentials that were given and are not valid: perhaps a guess."""

    def __init__(self, sentence: str) -> None:
        """Refuse, explained in ``sentence``."""
        super().__init__(401, "token", sentence)


class Doorkeeper:
    """Checks bearer tokens against all that are valid now, in time that tells nothing of them."""

    def __init__(self, settings: ServingSettings) -> None:
        """Read the tokens; raises ValueError where they cannot be used."""
        self._settings = settings
        self._required = settings.has_tokens
        self._digests = self._read()
        self._read_at = time.monotonic()
        self._stamp = self._file_stamp()

    @property
    def required(self) -> bool:
        """Whether a token is needed at all."""
        return self._required

    def check(self, headers: dict[bytes, bytes], peer: str) -> str:
        """Let a request in, by its bearer token or the page's cookie.

        Args:
            headers: the request's headers.
            peer: the client's address.

        Returns:
            The key that its rate is counted under.

        Raises:
            WrongToken: 401, a token or a cookie that is not valid.
            Refusal: 401, neither.
        """
        if not self._required:
            return peer
        authorization = headers.get(b"authorization", b"")
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() == b"bearer":
            key = self.token_key(token.strip())
            if key is not None:
                return key
            raise WrongToken("the bearer token is not a valid one; ask for a new one")
        cookie = headers.get(b"cookie", b"")
        key = self._cookie_key(cookie)
        if key is not None:
            return key
        if COOKIE_NAME.encode() in cookie:
            raise WrongToken("the page's cookie is not valid any more; log in at / again")
        raise Refusal(
            401, "token", "this needs a token; send the header Authorization: Bearer <token>"
        )

    def token_key(self, token: bytes) -> str | None:
        """Return the key of a token, None where it is not valid.

        All valid tokens are compared, through digests of equal length, whatever matches first.
        """
        self._reread()
        digest = hashlib.sha256(token).digest()
        found: bytes | None = None
        for known in self._digests:
            if hmac.compare_digest(digest, known):
                found = known
        return None if found is None else found.hex()[:16]

    def make_cookie(self, token: bytes) -> str | None:
        """Make the value of the page's cookie for a valid token, None for another.

        The cookie is not the token: it ends by itself, and cannot be turned back into it.
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
        """Take in a changed tokens file; a broken one keeps the tokens that were valid."""
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
            logger.info("tokens were read again: %d are valid", len(self._digests))
        except ValueError as error:
            logger.warning("tokens stay as they were: %s", error)


def check_host(headers: dict[bytes, bytes], allowed: AbstractSet[str]) -> None:
    """Refuse a browser that was led to this machine by a name of somebody else's.

    Where no token is asked for, that a page was loaded from here is all that stands between its
    script and the service. A stranger's name may point to 127.0.0.1 a moment after the page was
    loaded from elsewhere (DNS rebinding; Jackson et al., 2007); the Host header still has it.

    Args:
        headers: the request's headers.
        allowed: further names that the service is known by.

    Raises:
        Refusal: 403.
    """
    host = headers.get(b"host")
    # Every browser sends it; a program that does not is led by nobody.
    if host is not None and not _is_known(host) and _name(host) not in allowed:
        raise Refusal(
            403,
            "host",
            "this service has no tokens, so it answers only under a name of its own machine, such "
            "as localhost; name others in MARIO_SERVING_ALLOWED_HOSTS, or set tokens",
        )


def check_origin(headers: dict[bytes, bytes], allowed: AbstractSet[str]) -> None:
    """Refuse what a page of another site sends: the browser lends it its address and its cookie.

    Args:
        headers: the request's headers.
        allowed: further names that the service is known by.

    Raises:
        Refusal: 403.
    """
    origin = headers.get(b"origin")
    if origin is None:
        return
    site = origin.partition(b"://")[2].lower()
    if site != headers.get(b"host", b"").lower() and _name(site) not in allowed:
        raise Refusal(
            403,
            "origin",
            "this comes from a page of another site; behind a proxy with a name of its own, set "
            "MARIO_SERVING_ALLOWED_HOSTS to that name",
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
