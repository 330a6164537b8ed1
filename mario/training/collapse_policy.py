"""What a collapse leads to: nothing, the end of the run, or a rollback to its best policy."""

from __future__ import annotations

from mario.config.collapse import CollapseConfig


class CollapsePolicy:
    """Decides whether a run may continue after a collapse, and counts its rollbacks.

    Attributes:
        rollbacks: rollbacks of the run so far.
    """

    def __init__(self, settings: CollapseConfig) -> None:
        """Begin without a rollback."""
        self._settings = settings
        self.rollbacks = 0

    @property
    def tolerates_collapse(self) -> bool:
        """Whether a collapse is only reported."""
        return self._settings.action == "warn"

    @property
    def may_roll_back(self) -> bool:
        """Whether the run may return to its best policy once more."""
        settings = self._settings
        return settings.action == "rollback" and self.rollbacks < settings.max_rollbacks

    def count_rollback(self, best_steps: int) -> str:
        """Count a rollback, and describe it.

        Args:
            best_steps: agent steps of the policy that the run returns to.
        """
        self.rollbacks += 1
        return (
            f"rolled back to the policy of {best_steps} steps "
            f"({self.rollbacks} of {self._settings.max_rollbacks})"
        )

    @property
    def learning_rate_factor(self) -> float:
        """What a rollback multiplies the learning rate with, between 0 and 1."""
        return self._settings.rollback_learning_rate_factor
