"""The settings of the service, read from MARIO_SERVING_* environment variables.

They are environment variables because BentoML starts its workers as separate processes.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from mario.config.game import ConsoleName
from mario.errors import ServingError

PREFIX = "MARIO_SERVING_"
MIN_TOKEN_LENGTH = 16


class ServingSettings(BaseModel):
    """All settings of the service; the variable of a field is ``MARIO_SERVING_<FIELD>``.

    Attributes:
        policy: folder to serve, see ``sources.FolderSource``; None follows the registry.
        task: task whose champion to serve from the registry.
        database_url: database with the promotion ledger; None uses the project's default.
        tracking_uri: MLflow tracking URI; None uses the project's default.
        cache: folder for downloaded artefacts; None uses a temporary one.
        host: address to listen on; any but loopback requires tokens.
        port: port to listen on; the launcher replaces 0 by a free one.
        allowed_hosts: further host names of the service, such as a proxy's, separated by commas.
        metrics_port: port of a listener that serves only ``/metrics``, without a token; 0: no
            such listener. ``/metrics`` on the main port needs a token like the rest.
        workers: worker processes.
        threads: threads of one inference call.
        tokens: bearer tokens, separated by commas or white space; several at once allow rotation.
        tokens_file: file with one token a line; reloaded when it changes.
        rate_limit_per_second: requests a second of one token (without tokens: of one address),
            over all workers; 0 sets no limit.
        rate_limit_burst: requests of one token at once.
        trusted_proxies: addresses or networks, separated by commas, whose ``X-Forwarded-For`` and
            ``X-Forwarded-Proto`` are trusted. For any other peer, this machine included, the
            address of the connection counts.
        poll_seconds: time between two polls of the ledger for another version.
        max_observations: most observations in a request.
        max_list_observations: most observations as JSON lists of numbers, which take a hundred
            times the work of bytes and hold the interpreter lock.
        max_batch_observations: most observations in one inference call.
        inline_observations: largest batch that runs in the event loop.
        max_body_bytes: largest request body, unless an endpoint has a smaller limit.
        max_header_bytes: largest sum of header names and values.
        body_timeout_seconds: longest time for the headers of a request, and for its body.
        max_in_flight: most concurrent requests of one worker; more get a 503.
        max_queue_observations: most waiting observations of one worker; more get a 503.
        max_sessions: most sessions at once, over all workers.
        session_timeout_seconds: a session expires after this time without a request.
        session_file: file that workers share sessions through; None makes one for the service.
        shadow_share: share of requests that the challenger answers in the shadow, 0..1.
        canary_share: share of sessions that the challenger answers, 0..1.
        comparison_flush_seconds: time between two writes of shadow and canary counts.
        max_watchers: most pages that watch a game at once, in one worker.
        console: console of the live page.
        drift_window: observations that drift and action distribution are computed over.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    policy: Path | None = None
    task: str = "1-1"
    database_url: str | None = None
    tracking_uri: str | None = None
    cache: Path | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=3000, ge=0, le=65535)
    allowed_hosts: str = ""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=64)
    threads: int = Field(default=1, ge=1, le=64)
    tokens: SecretStr = SecretStr("")
    tokens_file: Path | None = None
    rate_limit_per_second: float = Field(default=0, ge=0)
    rate_limit_burst: int = Field(default=100, ge=1)
    trusted_proxies: str = ""
    poll_seconds: float = Field(default=1.0, ge=0.05, le=3600)
    max_observations: int = Field(default=64, ge=1, le=1024)
    max_list_observations: int = Field(default=16, ge=0, le=1024)
    max_batch_observations: int = Field(default=32, ge=1, le=1024)
    inline_observations: int = Field(default=16, ge=0, le=1024)
    max_body_bytes: int = Field(default=4 << 20, ge=1 << 10)
    max_header_bytes: int = Field(default=32 << 10, ge=1 << 10)
    body_timeout_seconds: float = Field(default=10, gt=0)
    max_in_flight: int = Field(default=512, ge=1)
    max_queue_observations: int = Field(default=1024, ge=1)
    max_sessions: int = Field(default=256, ge=0, le=100_000)
    session_timeout_seconds: float = Field(default=300, gt=0)
    session_file: Path | None = None
    shadow_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    canary_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    comparison_flush_seconds: float = Field(default=10, gt=0)
    max_watchers: int = Field(default=4, ge=0)
    console: Literal["auto", ConsoleName] = "auto"
    drift_window: int = Field(default=1000, ge=10)

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.metrics_port and self.metrics_port == self.port:
            raise ValueError(
                f"got {self.port} for both {PREFIX}PORT and {PREFIX}METRICS_PORT; expected two "
                "different ports; change one, or set METRICS_PORT to 0 to have /metrics on the "
                "main port only"
            )
        return self

    @field_validator("trusted_proxies")
    @classmethod
    def _are_addresses(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",") if name.strip()]
        for name in names:
            ipaddress.ip_network(name)  # uvicorn would silently treat anything else as a name
        return ",".join(names)

    @model_validator(mode="after")
    def _safe_to_listen(self) -> Self:
        self.token_list()
        if not self.listens_on_loopback and not self.has_tokens:
            raise ValueError(
                f"got host {self.host}, which other machines can reach, and no tokens; set "
                f"{PREFIX}TOKENS or {PREFIX}TOKENS_FILE, or listen on 127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _names_of_hosts(self) -> Self:
        for name in self.host_names:
            if not re.fullmatch(r"[a-z0-9._-]+", name) and not is_address(name):
                raise ValueError(
                    f"{PREFIX}ALLOWED_HOSTS: got {name[:80]!r}; expected names such as "
                    "mario.example, without scheme, port or path, separated by commas"
                )
        return self

    @property
    def host_names(self) -> frozenset[str]:
        """``allowed_hosts`` one by one, in lower case."""
        return frozenset(self.allowed_hosts.lower().replace(",", " ").split())

    @property
    def listens_on_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)

    @property
    def has_tokens(self) -> bool:
        """Whether requests need a bearer token."""
        return bool(self.tokens.get_secret_value().strip()) or self.tokens_file is not None

    def token_list(self) -> tuple[str, ...]:
        """Read the valid tokens from the setting and the file.

        Raises:
            ValueError: a token is too short or not printable ASCII, or the file is unreadable or
                empty.
        """
        text = self.tokens.get_secret_value().replace(",", " ")
        if self.tokens_file is not None:
            try:
                content = self.tokens_file.read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"tokens file cannot be read: {error}") from None
            if not content.split():
                raise ValueError(f"tokens file {self.tokens_file} holds no token")
            text += " " + content
        tokens = tuple(dict.fromkeys(text.split()))
        for number, token in enumerate(tokens, 1):
            # The message must not show the token: it goes to logs.
            if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable():
                raise ValueError(
                    f"token number {number} has {len(token)} characters; expected at least "
                    f"{MIN_TOKEN_LENGTH} printable ASCII characters"
                )
        return tokens

    def to_env(self) -> dict[str, str]:
        """Return the settings that differ from the defaults as environment variables."""
        result = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value != field.default and value is not None:
                text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
                result[PREFIX + name.upper()] = text
        return result

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None, **changes: Any) -> Self:
        """Read the settings from ``MARIO_SERVING_*`` variables; ``changes`` override them.

        Raises:
            ServingError: a variable is unknown or its value not allowed; the message names it.
        """
        source = os.environ if environment is None else environment
        values: dict[str, Any] = {
            name.removeprefix(PREFIX).lower(): value
            for name, value in source.items()
            if name.startswith(PREFIX) and value != ""
        }
        values.update({name: value for name, value in changes.items() if value is not None})
        try:
            return cls(**values)
        except ValidationError as error:
            raise ServingError(_describe(error)) from None


def is_loopback(host: str) -> bool:
    """Whether an address or name is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # A listener on all IPv6 addresses reports IPv4 ones as ::ffff:127.0.0.1.
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def is_address(text: str) -> bool:
    """Whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def family_of(host: str) -> socket.AddressFamily:
    """The address family of a host: IPv6 if it has a colon, else IPv4."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _describe(error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_url=False)[:3]:
        if not item["loc"]:
            parts.append(item["msg"].removeprefix("Value error, "))
            continue
        name = PREFIX + str(item["loc"][0]).upper()
        got = "a value" if "TOKEN" in name else json.dumps(item["input"], default=str)[:80]
        hint = "; remove it, there is no such setting" if item["type"] == "extra_forbidden" else ""
        parts.append(f"{name}: got {got}; {item['msg'][:1].lower()}{item['msg'][1:]}{hint}")
    return "serving settings: " + "; ".join(parts)
