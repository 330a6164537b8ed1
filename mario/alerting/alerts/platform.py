"""Alerts about the monitoring itself."""

from __future__ import annotations

from mario.alerting.declarations import Alert, AlertGroup

PLATFORM_ALERTS = AlertGroup(
    "platform",
    "the monitoring itself",
    (
        Alert("MarioTargetDown", "warning",
              'up{job!~"training|serving"} == 0',
              "{{ $labels.job }} does not answer",
              "{{ $labels.instance }} has not been reached for 5 minutes.", pending="5m"),
        # Always fires: if it stops arriving, no alert arrives.
        Alert("MarioWatchdog", "none",
              "vector(1)",
              "Alerting works",
              "This alert always fires; if it stops arriving, no alert arrives."),
    ),
)  # fmt: skip
