"""Who may ask: bearer tokens, and the page's cookie."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time

from serving.refusal import Refusal
from serving.settings import ServingSettings

logger = logging.getLogger("mario.serving")

COOKIE_NAME = "mario_page"
COOKIE_SECONDS = 12 * 3600
_REREAD_SECONDS = 1.0


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
            Refusal: 401, no token or a wrong one.
        """
        if not self._required:
            return peer
        authorization = headers.get(b"authorization", b"")
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() == b"bearer":
            key = self.token_key(token.strip())
            if key is not None:
                return key
            raise Refusal(401, "token", "the bearer token is not a valid one; ask for a new one")
        key = self._cookie_key(headers.get(b"cookie", b""))
        if key is not None:
            return key
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
