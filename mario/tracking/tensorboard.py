"""The TensorBoard sink: event files under the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from mario.tracking.numbers import NumbersSink
from mario.tracking.opening import SinkOpening
from mario.training.sinks import RunEnd


class TensorBoardSink(NumbersSink):
    """Writes event files for TensorBoard."""

    name: ClassVar[str] = "tensorboard"

    def __init__(self, folder: Path) -> None:
        """Write into a folder; needs the package tensorboard."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def on_end(self, end: RunEnd) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, numbers: dict[str, float], steps: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, steps)


def open_sink(opening: SinkOpening) -> TensorBoardSink:
    """Open the sink; needs the package tensorboard."""
    return TensorBoardSink(opening.run_dir / "tensorboard")
