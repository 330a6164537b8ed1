"""The dashboard of the action API: versions, requests, inference, actions, observations."""

from __future__ import annotations

from mario.alerting.declarations import Dashboard, Panel, quantiles

SERVING_DASHBOARD = Dashboard(
    "mario-serving",
    "Mario serving",
    None,
    (
        (
            "Versions",
            (
                Panel("Version", "short",
                      (("mario_serving_version_info > 0", "{{role}} {{model}} {{version}}"),),
                      "Number of workers that answer with the version.", 12, True),
                Panel("Polls for another version", "short",
                      (("sum by (role, result) (mario_serving_swaps_total)",
                        "{{role}} {{result}}"),),
                      "refused: the former version stays in service.", 12),
            ),
        ),
        (
            "Requests",
            (
                Panel("Requests a second", "reqps",
                      (("sum by (endpoint) (rate(mario_serving_requests_total"
                        "[$__rate_interval]))", "{{endpoint}}"),)),
                Panel("Refused a second, by reason", "reqps",
                      (("sum by (reason) (rate(mario_serving_errors_total[$__rate_interval]))",
                        "{{reason}}"),)),
                Panel("5xx", "percentunit",
                      (("mario:serving_failures:rate5m / (mario:serving_requests:rate5m > 0)",
                        "share of the answers"),), "An alert fires above 1%."),
                Panel("Request", "s", quantiles("mario_serving_request_seconds", "endpoint"),
                      width=12),
                Panel("Inference call", "s", quantiles("mario_serving_inference_seconds", "role"),
                      "One decision at 15 a second is 66 ms.", 12),
                Panel("Observations in a call", "short",
                      quantiles("mario_serving_batch_observations", "role")),
                Panel("Waiting", "short",
                      (("mario_serving_queue_observations", "observations"),
                       ("mario_serving_in_flight_requests", "requests"))),
                Panel("Sessions and watchers", "short",
                      (("mario_serving_sessions", "sessions"),
                       ("mario_serving_watchers", "watchers"))),
            ),
        ),
        (
            "Actions and observations",
            (
                Panel("Actions", "percentunit",
                      (("sum by (action) (rate(mario_serving_actions_total[$__rate_interval])) "
                        "/ on () group_left () sum(rate(mario_serving_actions_total"
                        "[$__rate_interval]))", "{{action}}"),), width=12),
                Panel("Entropy of the actions", "percentunit",
                      (("mario_serving_action_entropy_ratio", "entropy"),), width=12),
                Panel("Drift of the screens", "short",
                      (("mario_serving_observation_brightness_drift", "brightness"),
                       ("mario_serving_observation_contrast_drift", "contrast")),
                      "In standard deviations of the training data; an alert fires above 3."),
                Panel("Brightness and contrast", "short",
                      (("mario_serving_observation_brightness", "brightness"),
                       ("mario_serving_observation_contrast", "contrast")),
                      "Grey levels, 0 to 255."),
                Panel("Black and frozen", "percentunit",
                      (("mario_serving_observation_black_ratio", "black"),
                       ("mario_serving_observation_frozen_ratio", "frozen"),
                       ("mario_serving_observation_black_excess_ratio", "black − training"),
                       ("mario_serving_observation_frozen_excess_ratio", "frozen − training"))),
                Panel("Shadow", "short",
                      (("sum by (result) (rate(mario_serving_shadow_observations_total"
                        "[$__rate_interval]))", "{{result}}"),),
                      "Whether the challenger chose the same action as the champion.", 12),
                Panel("Canary", "short",
                      (("sum by (role) (rate(mario_serving_canary_decisions_total"
                        "[$__rate_interval]))", "{{role}}"),), width=12),
            ),
        ),
    ),
)  # fmt: skip
