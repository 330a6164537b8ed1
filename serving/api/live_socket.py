"""The WebSocket behind the page: sends the game's frames, takes the person's wishes.

The server sends one binary message a frame: the length of a JSON text (uint32, little-endian), the
text, and a PNG. The page sends JSON texts: ``start``, ``speed``, ``pause``, ``control``,
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

from mario.errors import ConfigError
from mario.game.console.contract import FRAMES_PER_SECOND
from mario.game.smb.levels import LEVEL_NAMES
from serving.api.request_parsing import MAX_SEED, Ask
from serving.http.errors import Refusal
from serving.http.messages import Message, Receive, Scope, Send
from serving.policies.engine import Decision, Engine
from serving.sessions.live_game import LiveGame, open_live_console

logger = logging.getLogger("mario.serving")

SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0)
_MAX_MESSAGE_CHARACTERS = 512
_REST_SECONDS = 1.5
"""How long the last picture of an episode stays before the next one starts."""


class WatchRefused(Exception):
    """The page sent something that is not part of the protocol."""


class PageGone(Exception):
    """The page was closed while a frame was on its way to it."""


class Watch:
    """Accepts pages and plays a game for each."""

    def __init__(self, engine: Engine, max_watchers: int, console: str) -> None:
        """Play with ``engine``'s champion for at most ``max_watchers`` pages at once."""
        self._engine = engine
        self._max_watchers = max_watchers
        self._console = console
        self._watchers = 0
        self._gauge = engine.instruments.get("watchers")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket; who asks and from which site was looked at before."""
        if self._watchers >= self._max_watchers:
            raise Refusal(429, "watchers", f"{self._max_watchers} pages watch already; try later")
        self._watchers += 1
        self._gauge.set(self._watchers)
        try:
            await send({"type": "websocket.accept"})
            player = _Player(self._engine, self._console, send)
            playing = asyncio.create_task(player.run())
            try:
                await self._listen(player, receive, playing)
            except WatchRefused as error:
                with suppress(OSError):  # it may be gone by now
                    close = {"type": "websocket.close", "code": 4400, "reason": str(error)[:120]}
                    await send(close)
            finally:
                playing.cancel()
                await asyncio.gather(playing, return_exceptions=True)
        finally:
            self._watchers -= 1
            self._gauge.set(self._watchers)

    @staticmethod
    async def _listen(player: _Player, receive: Receive, playing: asyncio.Task[None]) -> None:
        while True:
            listening = asyncio.ensure_future(receive())
            await asyncio.wait({listening, playing}, return_when=asyncio.FIRST_COMPLETED)
            if playing.done():
                listening.cancel()
                error = None if playing.cancelled() else playing.exception()
                if error is not None and not isinstance(error, PageGone):
                    logger.error("a game ended badly", exc_info=error)
                    raise WatchRefused("the game ended badly; load the page again")
                return
            message: Message = listening.result()
            if message["type"] == "websocket.disconnect":
                return
            player.take(message.get("text"))


class _Player:
    """One page's game and its wishes."""

    def __init__(self, engine: Engine, console: str, send: Send) -> None:
        self._engine = engine
        self._console = console
        self._send = send
        self._speed = 1.0
        self._paused = False
        self._person_plays = False
        self._person_buttons = 0
        self._sticky = True
        self._wanted: tuple[str, int] | None = ("1-1", 1)
        self._decision: Decision | None = None
        self._news = True
        self._awake = asyncio.Event()

    def take(self, text: object) -> None:
        """Take in one message of the page.

        Raises:
            WatchRefused: it is not one of the protocol's.
        """
        if not isinstance(text, str) or len(text) > _MAX_MESSAGE_CHARACTERS:
            raise WatchRefused("expected a short JSON text")
        try:
            message = orjson.loads(text)
        except orjson.JSONDecodeError:
            raise WatchRefused("expected JSON") from None
        if not isinstance(message, dict):
            raise WatchRefused("expected a JSON object")
        kind, value = message.get("type"), message.get("value")
        if kind == "start":
            self._take_start(message)
        elif kind == "speed" and value in SPEEDS and type(value) in (int, float):
            self._speed = float(value)
        elif kind == "pause" and isinstance(value, bool):
            self._paused = value
        elif kind == "control" and value in ("person", "champion"):
            self._person_plays, self._person_buttons = value == "person", 0
        elif kind == "buttons" and type(value) is int and 0 <= value <= 255:
            # Start would pause the game and select does nothing: neither is a move.
            self._person_buttons = value & 0b1111_0011
        else:
            raise WatchRefused("this message is none of start, speed, pause, control, buttons")
        self._awake.set()

    def _take_start(self, message: dict[str, Any]) -> None:
        level, seed = message.get("level"), message.get("seed")
        sticky = message.get("sticky", self._sticky)
        if (
            level not in LEVEL_NAMES
            or type(seed) is not int
            or not 0 <= seed <= MAX_SEED
            or not isinstance(sticky, bool)
        ):
            raise WatchRefused("start: expected a level 1-1 to 8-4, a seed and sticky")
        self._wanted, self._sticky = (cast(str, level), seed), sticky

    async def run(self) -> None:
        """Play until cancelled."""
        game = LiveGame(await asyncio.to_thread(open_live_console, self._console))
        due, next_at = time.monotonic(), time.monotonic()
        while True:
            if self._wanted is not None:
                (level, seed), self._wanted = self._wanted, None
                try:
                    await asyncio.to_thread(game.start, level, seed, sticky=self._sticky)
                except ConfigError as error:  # LEVEL_NAMES was checked; a console may still refuse
                    raise WatchRefused(str(error)) from error
                await self._decide(game)
                await self._show(game)
                due = time.monotonic()
            if self._paused:
                self._awake.clear()
                await self._awake.wait()
                due = time.monotonic()
                continue
            if game.ended is not None:
                await self._rest(game)
                continue
            buttons = self._person_buttons if self._person_plays else self._champion_buttons()
            if await asyncio.to_thread(game.play, buttons, self._frame_skip()):
                await self._decide(game)
            # Above real time not every frame is shown, and none while the page lags behind.
            now = time.monotonic()
            if game.ended is not None or (now - due < 0.1 and now >= next_at):
                await self._show(game)
                next_at = now + 0.8 / FRAMES_PER_SECOND
            due = max(due + 1 / (FRAMES_PER_SECOND * self._speed), time.monotonic() - 0.25)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _rest(self, game: LiveGame) -> None:
        """Keep the last picture for a while, then start the next seed unless the page decides."""
        self._awake.clear()
        try:
            async with asyncio.timeout(_REST_SECONDS):
                while self._wanted is None:
                    await self._awake.wait()
                    self._awake.clear()
        except TimeoutError:
            self._wanted = (game.level, (game.seed + 1) % MAX_SEED)

    def _frame_skip(self) -> int:
        return 4 if self._decision is None else self._decision.version.policy.frame_skip

    def _champion_buttons(self) -> int:
        decision = self._decision
        if decision is None:
            return 0
        return decision.version.policy.actions[int(decision.actions[0])].buttons

    async def _decide(self, game: LiveGame) -> None:
        """Ask the champion; without one the game goes on with nobody at the pad."""
        try:
            self._decision = await self._engine.decide(Ask(game.observation()[None], None, None))
        except Refusal:
            self._decision = None
        self._news = True

    async def _show(self, game: LiveGame) -> None:
        text: dict[str, Any] = game.status()
        text["control"] = "person" if self._person_plays else "champion"
        text["sticky"] = self._sticky
        if self._news:
            text["decision"] = _describe(self._decision)
            self._news = False
        png = await asyncio.to_thread(game.png)
        head = orjson.dumps(text, option=orjson.OPT_SERIALIZE_NUMPY)
        data = struct.pack("<I", len(head)) + head + png
        try:
            await self._send({"type": "websocket.send", "bytes": data})
        except OSError as error:  # what ASGI's send raises then
            raise PageGone from error


def _describe(decision: Decision | None) -> dict[str, Any] | None:
    if decision is None:
        return None
    version = decision.version
    return {
        "action": int(decision.actions[0]),
        "probabilities": decision.probabilities[0],
        "value": float(decision.values[0]),
        "names": version.policy.artefact.manifest.action_names,
        "version": version.ref.version,
        "digest": version.ref.digest,
    }
