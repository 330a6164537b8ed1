"""A client of the serving API that also plays whole episodes against it.

``python -m mario.client --url http://127.0.0.1:3000 --level 1-1 --seed 1`` plays one episode. This
module needs only numpy; playing needs the game, that is the whole package.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import select
import sys
import time
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit

import numpy as np
import numpy.typing as npt

from mario.errors import MarioError, ServingError

_BYTES = "application/octet-stream"
_OBSERVATION = (4, 84, 84)
_SCREENS = ((240, 256, 3), (84, 84))


@dataclass(frozen=True)
class Predictions:
    """The service's answer to N observations.

    Attributes:
        actions: int64 (N,), indices into ``action_names``.
        buttons: int64 (N,), button bytes.
        values: float32 (N,).
        probabilities: float32 (N, A).
        action_names: names in the order of the probabilities.
        version: the version that answered all observations.
        digest: digest of the version.
        latency_seconds: time in the service.
    """

    actions: npt.NDArray[np.int64]
    buttons: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    action_names: tuple[str, ...]
    version: str
    digest: str
    latency_seconds: float


@dataclass(frozen=True)
class PlayedEpisode:
    """The result of an episode.

    Attributes:
        level: the level.
        seed: the episode's seed.
        end: ``FLAG``, ``DEATH``, ``TIME_OUT`` or ``TRUNCATED``.
        steps: decisions taken.
        furthest_x_px: furthest x.
        versions: the versions that answered, in order of appearance.
    """

    level: str
    seed: int
    end: str
    steps: int
    furthest_x_px: int
    versions: tuple[str, ...]


class MarioClient:
    """Sends requests to one service over one persistent connection; not thread-safe.

    An answer 409, 429 or 503 with ``Retry-After`` means that the service did nothing: the client
    waits and repeats the request until ``patience_seconds`` are over. If the connection breaks
    before an answer, the client repeats only requests without side effects: a screen sent twice
    would be two frames of the session.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_seconds: float = 10,
        patience_seconds: float = 30,
    ) -> None:
        """Make a client of the service at ``url``; it connects with the first request.

        Args:
            url: such as ``http://127.0.0.1:3000`` or ``https://example.org/mario``.
            token: bearer token.
            timeout_seconds: longest wait for an answer.
            patience_seconds: longest time in which one call repeats a request to a busy service;
                0 never repeats it.

        Raises:
            ServingError: the URL or the token is not valid.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise _bad_url(url) from None
        extras = parts.query or parts.fragment or parts.username
        if parts.scheme not in ("http", "https") or not parts.hostname or extras:
            raise _bad_url(url)
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ServingError(
                f"token: got {len(token)} characters, not all of them printable ASCII; remove "
                "white space at its ends"
            )
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._connection = kind(parts.hostname, port, timeout=timeout_seconds)
        self._prefix = parts.path.rstrip("/")
        self._url = f"{parts.scheme}://{parts.netloc}{self._prefix}"
        self._patience_seconds = patience_seconds
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def ready(self) -> bool:
        """Return whether a version is loaded; False if the service is unreachable."""
        try:
            return self._send("GET", "/readyz", b"", {}, repeatable=True)[0] == 200
        except ServingError:
            return False

    def card(self) -> dict[str, Any]:
        """Return the description of the champion.

        Raises:
            ServingError: the service answers with an error or is unreachable.
        """
        return self._document("GET", "/card", b"", {}, repeatable=True)

    def predict(
        self,
        observations: npt.NDArray[np.uint8],
        *,
        mode: str | None = None,
        seed: int | None = None,
    ) -> Predictions:
        """Predict actions.

        Args:
            observations: uint8 (N, 4, 84, 84), newest frame last.
            mode: greedy or sample; None uses the policy's own.
            seed: seed for sampling.

        Raises:
            ServingError: the observations are not valid, or the service answers with an error or
                is unreachable.
        """
        shape = observations.shape
        if observations.dtype != np.uint8 or shape[1:] != _OBSERVATION or not shape[0]:
            raise ServingError(
                f"observations: got {observations.dtype} {shape}; expected uint8 (N, 4, 84, 84) "
                "with N of 1 or more, newest frame last; convert them"
            )
        options = {"mode": mode, "seed": seed}
        query = urlencode({name: value for name, value in options.items() if value is not None})
        headers, body = self._ask(
            "POST",
            "/predict/raw" + (f"?{query}" if query else ""),
            np.ascontiguousarray(observations).tobytes(),
            {"content-type": _BYTES, "accept": _BYTES},
            repeatable=True,
        )
        try:
            return _read_predictions(headers, body, len(observations))
        except (KeyError, ValueError) as error:
            raise self._unexpected_answer(
                "/predict/raw", f"{type(error).__name__}: {error}"
            ) from error

    def start_session(self, *, mode: str | None = None, seed: int | None = None) -> str:
        """Start a session and return its name.

        Raises:
            ServingError: the service answers with an error or is unreachable.
        """
        options = {k: v for k, v in {"mode": mode, "seed": seed}.items() if v is not None}
        headers = {"content-type": "application/json"}
        document = self._document("POST", "/sessions", json.dumps(options).encode(), headers)
        if not isinstance(document.get("session"), str):
            raise self._unexpected_answer("/sessions", "no session name")
        return str(document["session"])

    def act(self, session: str, screen: npt.NDArray[np.uint8]) -> dict[str, Any]:
        """Send a screen uint8 (240, 256, 3), or a ready frame uint8 (84, 84).

        Returns:
            The service's answer: `action` (the index), `action_name`, `buttons`, `version`, ….

        Raises:
            ServingError: the screen is not valid, or the service answers with an error or is
                unreachable. If the answer is lost, the session may hold the screen: start another.
        """
        if screen.dtype != np.uint8 or screen.shape not in _SCREENS:
            raise ServingError(
                f"screen: got {screen.dtype} {screen.shape}; expected uint8 (240, 256, 3), or "
                "(84, 84) for a ready frame; convert it"
            )
        body = np.ascontiguousarray(screen).tobytes()
        path = f"/sessions/{quote(session, safe='')}/act"
        return self._document("POST", path, body, {"content-type": _BYTES})

    def end_session(self, session: str) -> None:
        """End a session.

        Raises:
            ServingError: the service answers with an error or is unreachable.
        """
        self._ask("DELETE", f"/sessions/{quote(session, safe='')}", b"", {})

    def play(
        self,
        level: str = "1-1",
        seed: int = 1,
        *,
        mode: str | None = None,
        frame_skip: int = 4,
        max_steps: int = 3000,
        console: str = "native",
    ) -> PlayedEpisode:
        """Play one episode with the noise of ``mario-eval-v1``; the service chooses each action.

        Args:
            level: ``1-1`` … ``8-4``.
            seed: drives start and sticky actions.
            mode: greedy or sample; None uses the policy's own.
            frame_skip: frames per step; the champion's is in :meth:`card`.
            max_steps: the episode is truncated after this many steps.
            console: ``native`` or ``nes-py``.

        Raises:
            ServingError: the game is not installed, or as :meth:`predict`.
            ConfigError: there is no such level.
        """
        try:
            from mario.config.faults import parse_settings
            from mario.config.game import GameConfig
            from mario.game.batch.contract import EpisodeSpec
            from mario.game.batch.factory import open_batch
            from mario.game.smb.end_reason import EndReason
        except ImportError as error:
            raise ServingError(
                f"play: got no game on this machine ({error}); expected the whole package "
                "mario-mlops; install it with its dependencies, or send screens of your own "
                "emulator with start_session and act"
            ) from error

        # An action's index is its button byte, whatever actions the champion has.
        values = {
            "console": "nes-py" if console == "nes-py" else "native",
            "frame_skip": frame_skip,
            "max_steps": max_steps,
        }
        game = parse_settings(GameConfig, values, "play")
        batch = open_batch(1, game, buttons=range(256), threads=1)
        observations = np.zeros((1, 4, 84, 84), dtype=np.uint8)
        versions: dict[str, None] = {}
        try:
            batch.begin(0, EpisodeSpec(level, seed), observations)
            while True:
                answer = self.predict(observations, mode=mode)
                versions[answer.version] = None
                step = batch.step(answer.buttons, observations)
                if step.end[0] != EndReason.RUNNING:
                    return PlayedEpisode(
                        level,
                        seed,
                        EndReason(int(step.end[0])).name,
                        int(step.steps[0]),
                        int(step.furthest_x_px[0]),
                        tuple(versions),
                    )
        finally:
            batch.close()

    def _document(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: dict[str, str],
        *,
        repeatable: bool = False,
    ) -> dict[str, Any]:
        answer = self._ask(method, path, body, headers, repeatable=repeatable)[1]
        try:
            return dict(json.loads(answer))
        except (ValueError, TypeError) as error:
            raise self._unexpected_answer(path, "no JSON object") from error

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: dict[str, str],
        *,
        repeatable: bool = False,
    ) -> tuple[dict[str, str], bytes]:
        deadline = time.monotonic() + self._patience_seconds
        while True:
            status, got, answer = self._send(method, path, body, headers, repeatable=repeatable)
            wait = _retry_after_seconds(status, got)
            if wait is None or time.monotonic() + wait > deadline:
                break
            time.sleep(wait)
        if status >= 400:
            try:
                sentence = json.loads(answer)["error"]
            except (ValueError, KeyError, TypeError):
                sentence = answer[:200].decode(errors="replace")
            where = path.split("?", maxsplit=1)[0]
            raise ServingError(f"{method} {where}: got {status}: {sentence}")
        return got, answer

    def _send(
        self, method: str, path: str, body: bytes, headers: dict[str, str], *, repeatable: bool
    ) -> tuple[int, dict[str, str], bytes]:
        connection = self._connection
        if connection.sock is not None and _is_readable(connection.sock.fileno()):
            # The service closed the idle connection. Nothing was sent on it, so a request with side
            # effects can safely use a new one.
            connection.close()
        attempts = 2 if repeatable else 1
        for attempt in range(1, attempts + 1):
            try:
                if connection.sock is None:
                    connection.connect()
            except OSError as error:
                connection.close()
                raise ServingError(
                    f"{self._url}: got no connection ({error}); expected a running service; start "
                    "it with `mario serve`"
                ) from error
            try:
                connection.request(
                    method, self._prefix + path, body or None, self._headers | headers
                )
                response = connection.getresponse()
                got = {name.lower(): value for name, value in response.getheaders()}
                return response.status, got, response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                broken = isinstance(error, ConnectionError)
                if broken and attempt < attempts:
                    continue
                where = path.split("?", maxsplit=1)[0]
                hint = (
                    "expected one; check the service, then try again"
                    if repeatable
                    else "the service may have processed the request, so it is not repeated; "
                    "start another session"
                )
                raise ServingError(
                    f"{self._url}: got no answer to {method} {where} "
                    f"({str(error) or type(error).__name__}); {hint}"
                ) from error
        raise AssertionError("every attempt returns or raises")

    def _unexpected_answer(self, path: str, what: str) -> ServingError:
        return ServingError(
            f"{self._url}{path}: got an unexpected answer ({what}); expected one of `mario serve`; "
            "correct the URL"
        )


def _bad_url(url: str) -> ServingError:
    shown = re.sub("//[^/]*@", "//…@", url)  # hide a password
    return ServingError(
        f"url: got {shown!r}; expected http://host:port or https://host, with a path if a proxy "
        "has one; correct it"
    )


def _read_predictions(headers: dict[str, str], body: bytes, count: int) -> Predictions:
    """Parse ``count`` rows of bytes; raise KeyError or ValueError if they are not valid."""
    names = tuple(headers["x-mario-actions"].split(","))
    rows = np.frombuffer(body, dtype="<f4").reshape(count, 3 + len(names))
    return Predictions(
        actions=np.ascontiguousarray(rows[:, 0]).view("<i4").astype(np.int64),
        buttons=np.ascontiguousarray(rows[:, 1]).view("<i4").astype(np.int64),
        values=rows[:, 2].astype(np.float32),
        probabilities=rows[:, 3:].astype(np.float32),
        action_names=names,
        version=headers["x-mario-version"],
        digest=headers["x-mario-digest"],
        latency_seconds=float(headers["x-mario-latency-seconds"]),
    )


def _retry_after_seconds(status: int, headers: dict[str, str]) -> float | None:
    """Seconds until the request may be repeated; None if the answer does not say so."""
    wait = headers.get("retry-after", "")
    if status not in (409, 429, 503) or not (wait.isascii() and wait.isdigit()):
        return None
    return max(0.05, float(wait))


def _is_readable(descriptor: int) -> bool:
    """Whether an idle connection has data to read, which means that the peer closed it."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def main(arguments: list[str] | None = None) -> int:
    """Play episodes from the command line."""
    parser = argparse.ArgumentParser(prog="python -m mario.client", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:3000")
    parser.add_argument("--level", default="1-1")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=1)
    parser.add_argument("--mode", choices=["greedy", "sample"])
    parser.add_argument("--console", choices=["native", "nes-py"], default="native")
    options = parser.parse_args(arguments)
    token = os.environ.get("MARIO_TOKEN") or None
    try:
        with MarioClient(options.url, token=token) as client:
            frame_skip = int(client.card()["frame_skip"])
            for seed in range(options.seed, options.seed + options.episodes):
                episode = client.play(
                    options.level,
                    seed,
                    mode=options.mode,
                    frame_skip=frame_skip,
                    console=options.console,
                )
                sys.stdout.write(
                    f"{episode.level} seed {seed}: {episode.end} at {episode.furthest_x_px} px "
                    f"after {episode.steps} steps, version {', '.join(episode.versions)}\n"
                )
    except MarioError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0
