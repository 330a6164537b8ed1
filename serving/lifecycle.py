"""The contract of what starts and stops with the application."""

from __future__ import annotations

from typing import Protocol


class Lifecycle(Protocol):
    """Something that starts and stops with the application."""

    def start(self) -> None:
        """Start, in the event loop."""

    def stop(self) -> None:
        """Stop."""
