"""A small client of the serving API; plays whole episodes against it.

Run it: ``python -m mario.client --url http://127.0.0.1:3000 --level 1-1 --seed 1``.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from mario.errors import MarioError, ServingError

_BYTES = "application/octet-stream"


@dataclass(frozen=True)
class Predictions:
    """The service's answer to N observations.

    Attributes:
        actions: int64 (N,), indices into ``action_names``.
        buttons: int64 (N,), button bytes.
        values: float32 (N,).
        probabilities: float32 (N, A).
        action_names: names in the order of the probabilities.
        version: the version that answered, all of it.
        digest: its digest.
        latency_seconds: time the service took.
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
    """What came of an episode.

    Attributes:
        level: the level.
        seed: the episode's seed.
        end: ``FLAG``, ``DEATH``, ``TIME_OUT`` or ``TRUNCATED``.
        steps: decisions taken.
        furthest_x_px: furthest x.
        versions: versions that took the decisions, in order of appearance.
    """

    level: str
    seed: int
    end: str
    steps: int
    furthest_x_px: int
    versions: tuple[str, ...]


class MarioClient:
    """Speaks to one service over one connection that is kept open. Not safe for several threads."""

    def __init__(self, url: str, *, token: str | None = None, timeout_seconds: float = 10) -> None:
        """Speak to the service at ``url``, such as ``http://127.0.0.1:3000``.

        Raises:
            ServingError: the URL is none.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ServingError(
                f"url: got {url!r}; expected http://host:port or https://host; correct it"
            )
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._connection = kind(parts.hostname, parts.port, timeout=timeout_seconds)
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def ready(self) -> bool:
        """Tell whether a version answers; False where the service cannot be reached."""
        try:
            return self._send("GET", "/readyz", b"", {})[0] == 200
        except ServingError:
            return False

    def card(self) -> dict[str, Any]:
        """Read what is known of the champion.

        Raises:
            ServingError: the service refuses or cannot be reached.
        """
        return dict(json.loads(self._ask("GET", "/card", b"", {})[1]))

    def predict(
        self,
        observations: npt.NDArray[np.uint8],
        *,
        mode: str | None = None,
        seed: int | None = None,
    ) -> Predictions:
        """Ask for actions.

        Args:
            observations: uint8 (N, 4, 84, 84), newest frame last.
            mode: greedy or sample; None for the policy's own.
            seed: seed for sampling.

        Raises:
            ServingError: the service refuses or cannot be reached.
        """
        wishes = {"mode": mode, "seed": seed}
        query = "&".join(f"{name}={value}" for name, value in wishes.items() if value is not None)
        headers, body = self._ask(
            "POST",
            "/predict/raw" + (f"?{query}" if query else ""),
            np.ascontiguousarray(observations).tobytes(),
            {"content-type": _BYTES, "accept": _BYTES},
        )
        names = tuple(headers["x-mario-actions"].split(","))
        rows = np.frombuffer(body, dtype="<f4").reshape(len(observations), 3 + len(names))
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

    def start_session(self, *, mode: str | None = None, seed: int | None = None) -> str:
        """Start a session and return its name.

        Raises:
            ServingError: the service refuses or cannot be reached.
        """
        wishes = {k: v for k, v in {"mode": mode, "seed": seed}.items() if v is not None}
        body = json.dumps(wishes).encode()
        return str(json.loads(self._json("POST", "/sessions", body))["session"])

    def act(self, session: str, screen: npt.NDArray[np.uint8]) -> dict[str, Any]:
        """Send one screen uint8 (240, 256, 3), or one ready frame uint8 (84, 84); get the action.

        Raises:
            ServingError: the service refuses or cannot be reached.
        """
        body = np.ascontiguousarray(screen).tobytes()
        path = f"/sessions/{session}/act"
        return dict(json.loads(self._ask("POST", path, body, {"content-type": _BYTES})[1]))

    def end_session(self, session: str) -> None:
        """End a session.

        Raises:
            ServingError: the service refuses or cannot be reached.
        """
        self._ask("DELETE", f"/sessions/{session}", b"", {})

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
        """Play one episode with the noise of ``mario-eval-v1``; the service decides each step.

        Args:
            level: ``1-1`` … ``8-4``.
            seed: drives start and sticky actions.
            mode: greedy or sample; None for the policy's own.
            frame_skip: frames a decision lasts; the card tells the champion's.
            max_steps: the episode is cut after so many decisions.
            console: ``native`` or ``nes-py``.

        Raises:
            MarioError: the game or the service refuses.
        """
        from mario.game.batch import BatchSettings, EndReason, EpisodeSpec, open_batch

        # An action's index is its button byte, whatever actions the champion has.
        settings = BatchSettings(
            buttons=tuple(range(256)), frame_skip=frame_skip, max_steps=max_steps, threads=1
        )
        batch = open_batch(1, settings, "nes-py" if console == "nes-py" else "native")
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

    def _json(self, method: str, path: str, body: bytes) -> bytes:
        return self._ask(method, path, body, {"content-type": "application/json"})[1]

    def _ask(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[dict[str, str], bytes]:
        status, got, answer = self._send(method, path, body, headers)
        if status >= 400:
            try:
                sentence = json.loads(answer)["error"]
            except (ValueError, KeyError, TypeError):
                sentence = answer[:200].decode(errors="replace")
            where = path.split("?", maxsplit=1)[0]
            raise ServingError(f"{method} {where}: got {status}: {sentence}")
        return got, answer

    def _send(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        for attempt in (1, 2):
            try:
                self._connection.request(method, path, body or None, self._headers | headers)
                response = self._connection.getresponse()
                got = {name.lower(): value for name, value in response.getheaders()}
                return response.status, got, response.read()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
                # The service closes connections that were quiet; one more try opens another.
                self._connection.close()
                if attempt == 2:
                    raise self._unreachable(error) from error
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                raise self._unreachable(error) from error
        raise AssertionError("unreachable")

    def _unreachable(self, error: Exception) -> ServingError:
        return ServingError(
            f"http://{self._connection.host}:{self._connection.port}: got no answer ({error}); "
            "expected a running service; start it with `mario serve`"
        )


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


if __name__ == "__main__":
    sys.exit(main())
