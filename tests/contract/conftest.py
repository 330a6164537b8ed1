"""What every implementation of a Protocol is tested with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from mario.config.game import ConsoleName, GameConfig
from mario.game.batch.contract import GameBatch
from mario.game.batch.factory import open_batch
from mario.game.console.contract import Console
from mario.game.console.factory import open_console

CONSOLES: tuple[ConsoleName, ...] = ("nes-py", "native")


@pytest.fixture(params=CONSOLES)
def console_name(request: pytest.FixtureRequest) -> ConsoleName:
    """The console under test; the native one must be built, a missing build is a failure."""
    name: ConsoleName = request.param
    return name


@pytest.fixture
def console(console_name: ConsoleName) -> Console:
    """A console that was just switched on."""
    return open_console(console_name)


@pytest.fixture
def make_batch(console_name: ConsoleName) -> Iterator[Callable[..., GameBatch]]:
    """Make batches that are closed after the test."""
    made: list[GameBatch] = []

    def make(
        slots: int, game: GameConfig, buttons: Sequence[int] | None = None, threads: int = 2
    ) -> GameBatch:
        game = game.model_copy(update={"console": console_name})
        made.append(open_batch(slots, game, buttons=buttons, threads=threads))
        return made[-1]

    yield make
    for batch in made:
        batch.close()
