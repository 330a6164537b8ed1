"""What every implementation of a Protocol is tested with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from mario.game.batch.contract import BatchSettings, GameBatch, open_batch
from mario.game.console.contract import Console, ConsoleName, open_console

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
def make_batch(
    console_name: ConsoleName,
) -> Iterator[Callable[[int, BatchSettings], GameBatch]]:
    """Make batches that are closed after the test."""
    made: list[GameBatch] = []

    def make(slots: int, settings: BatchSettings) -> GameBatch:
        made.append(open_batch(slots, settings, console_name))
        return made[-1]

    yield make
    for batch in made:
        batch.close()
