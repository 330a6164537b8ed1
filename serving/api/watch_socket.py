"""The WebSocket of the web page: sends the frames of a live game and receives commands.

The server sends one binary message per frame: the length of a JSON text (uint32, little-endian),
the text, and a PNG. The page sends JSON texts: ``start``, ``speed``, ``pause``, ``control``,
``buttons``.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from contextlib import suppress
from typing import Any, cast

import orjson

from mario.config.levels import LEVEL_NAMES
from mario.errors import ConfigError
from mario.game.console.contract import FRAMES_PER_SECOND
from serving.api.request_parsing import MAX_SEED
from serving.http.errors import HttpError
from serving.http.messages import Message, Receive, Scope, Send
from serving.policies.engine import Engine
from serving.policies.prediction import PredictionInput, PredictionOutput
from serving.sessions.live_game import LiveGame, open_live_console

logger = logging.getLogger("mario.serving")

SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0)
_MAX_MESSAGE_CHARACTERS = 512
_LAST_PICTURE_SECONDS = 1.5
"""How long the last picture of an episode stays before the next episode starts."""


class WatchProtocolError(Exception):
    """The page sent a message that is not part of the protocol."""


class PageClosed(Exception):
    """The page closed the connection while a frame was being sent."""


class WatchSocket:
    """Handler of ``/watch``: plays one game per connected page."""

    def __init__(self, engine: Engine, max_watchers: int, console: str) -> None:
        """Let ``engine``'s champion play on ``console``, for at most ``max_watchers`` pages."""
        self._engine = engine
        self._max_watchers = max_watchers
        self._console = console
        self._watchers = 0
        self._gauge = engine.metrics.get("watchers")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket; the application has authenticated it and checked its origin."""
        if self._watchers >= self._max_watchers:
            raise HttpError(
                429, "watchers", f"{self._max_watchers} pages already watch; try again later"
            )
        self._watchers += 1
        self._gauge.set(self._watchers)
        try:
            await send({"type": "websocket.accept"})
            player = _WatchedGame(self._engine, self._console, send)
            playing = asyncio.create_task(player.run())
            try:
                await self._listen(player, receive, playing)
            except WatchProtocolError as error:
                with suppress(OSError):  # the page may be closed by now
                    close = {"type": "websocket.close", "code": 4400, "reason": str(error)[:120]}
                    await send(close)
            finally:
                playing.cancel()
                await asyncio.gather(playing, return_exceptions=True)
        finally:
            self._watchers -= 1
            self._gauge.set(self._watchers)

    @staticmethod
    async def _listen(player: _WatchedGame, receive: Receive, playing: asyncio.Task[None]) -> None:
        while True:
            listening = asyncio.ensure_future(receive())
            await asyncio.wait({listening, playing}, return_when=asyncio.FIRST_COMPLETED)
            if playing.done():
                listening.cancel()
                error = None if playing.cancelled() else playing.exception()
                if error is not None and not isinstance(error, PageClosed):
                    logger.error("a watched game failed", exc_info=error)
                    raise WatchProtocolError("the game failed; load the page again")
                return
            message: Message = listening.result()
            if message["type"] == "websocket.disconnect":
                return
            player.apply(message.get("text"))


class _WatchedGame:
    """The game of one page, and the commands that the page sent."""

    def __init__(self, engine: Engine, console: str, send: Send) -> None:
        self._engine = engine
        self._console = console
        self._send = send
        self._speed = 1.0
        self._paused = False
        self._person_plays = False
        self._person_buttons = 0
        self._sticky = True
        self._next_episode: tuple[str, int] | None = ("1-1", 1)
        self._output: PredictionOutput | None = None
        self._output_is_new = True
        self._awake = asyncio.Event()

    def apply(self, text: object) -> None:
        """Apply one message of the page.

        Raises:
            WatchProtocolError: the message is not part of the protocol.
        """
        if not isinstance(text, str) or len(text) > _MAX_MESSAGE_CHARACTERS:
            raise WatchProtocolError("expected a short JSON text")
        try:
            message = orjson.loads(text)
        except orjson.JSONDecodeError:
            raise WatchProtocolError("expected JSON") from None
        if not isinstance(message, dict):
            raise WatchProtocolError("expected a JSON object")
        kind, value = message.get("type"), message.get("value")
        if kind == "start":
            self._apply_start(message)
        elif kind == "speed" and value in SPEEDS and type(value) in (int, float):
            self._speed = float(value)
        elif kind == "pause" and isinstance(value, bool):
            self._paused = value
        elif kind == "control" and value in ("person", "champion"):
            self._person_plays, self._person_buttons = value == "person", 0
        elif kind == "buttons" and type(value) is int and 0 <= value <= 255:
            # Without start and select: start would pause the game, select does nothing.
            self._person_buttons = value & 0b1111_0011
        else:
            raise WatchProtocolError("expected one of start, speed, pause, control, buttons")
        self._awake.set()

    def _apply_start(self, message: dict[str, Any]) -> None:
        level, seed = message.get("level"), message.get("seed")
        sticky = message.get("sticky", self._sticky)
        if (
            level not in LEVEL_NAMES
            or type(seed) is not int
            or not 0 <= seed <= MAX_SEED
            or not isinstance(sticky, bool)
        ):
            raise WatchProtocolError("start: expected a level 1-1 to 8-4, a seed and sticky")
        self._next_episode, self._sticky = (cast(str, level), seed), sticky

    async def run(self) -> None:
        """Play until cancelled."""
        game = LiveGame(await asyncio.to_thread(open_live_console, self._console))
        due, next_at = time.monotonic(), time.monotonic()
        while True:
            if self._next_episode is not None:
                (level, seed), self._next_episode = self._next_episode, None
                try:
                    await asyncio.to_thread(game.start, level, seed, sticky=self._sticky)
                except ConfigError as error:  # the level is known, but the console may still refuse
                    raise WatchProtocolError(str(error)) from error
                await self._decide(game)
                await self._show(game)
                due = time.monotonic()
            if self._paused:
                self._awake.clear()
                await self._awake.wait()
                due = time.monotonic()
                continue
            if game.ended is not None:
                await self._show_last_picture(game)
                continue
            buttons = self._person_buttons if self._person_plays else self._champion_buttons()
            if await asyncio.to_thread(game.play, buttons, self._frame_skip()):
                await self._decide(game)
            # Faster than real time some frames are skipped, and all while the page lags behind.
            now = time.monotonic()
            if game.ended is not None or (now - due < 0.1 and now >= next_at):
                await self._show(game)
                next_at = now + 0.8 / FRAMES_PER_SECOND
            due = max(due + 1 / (FRAMES_PER_SECOND * self._speed), time.monotonic() - 0.25)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _show_last_picture(self, game: LiveGame) -> None:
        """Show the last picture for a while; then start the episode that is due."""
        self._awake.clear()
        try:
            async with asyncio.timeout(_LAST_PICTURE_SECONDS):
                while self._next_episode is None:
                    await self._awake.wait()
                    self._awake.clear()
        except TimeoutError:
            self._next_episode = (game.level, (game.seed + 1) % MAX_SEED)

    def _frame_skip(self) -> int:
        return 4 if self._output is None else self._output.version.policy.frame_skip

    def _champion_buttons(self) -> int:
        return 0 if self._output is None else self._output.chosen[0].buttons

    async def _decide(self, game: LiveGame) -> None:
        """Ask the champion for an action; without a champion no button is pressed."""
        try:
            self._output = await self._engine.predict(
                PredictionInput(game.observation()[None], None, None)
            )
        except HttpError:
            self._output = None
        self._output_is_new = True

    async def _show(self, game: LiveGame) -> None:
        text: dict[str, Any] = game.status()
        text["control"] = "person" if self._person_plays else "champion"
        text["sticky"] = self._sticky
        if self._output_is_new:
            text["decision"] = _describe(self._output)
            self._output_is_new = False
        png = await asyncio.to_thread(game.png)
        head = orjson.dumps(text, option=orjson.OPT_SERIALIZE_NUMPY)
        data = struct.pack("<I", len(head)) + head + png
        try:
            await self._send({"type": "websocket.send", "bytes": data})
        except OSError as error:  # ASGI's send raises it after a disconnect
            raise PageClosed from error


def _describe(output: PredictionOutput | None) -> dict[str, Any] | None:
    if output is None:
        return None
    version = output.version
    return {
        "action": int(output.actions[0]),
        "probabilities": output.probabilities[0],
        "value": float(output.values[0]),
        "names": version.policy.artefact.manifest.action_names,
        "version": version.ref.version,
        "digest": version.ref.digest,
    }
