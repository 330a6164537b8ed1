"""Alerts about the action API."""

from __future__ import annotations

from mario.alerting.declarations import Alert, AlertGroup, RecordingRule

SERVING_ALERTS = AlertGroup(
    "serving",
    "the action API",
    (
        RecordingRule("mario:serving_requests:rate5m",
                      "sum(rate(mario_serving_requests_total[5m]))"),
        RecordingRule("mario:serving_failures:rate5m",
                      'sum(rate(mario_serving_requests_total{status=~"5.."}[5m]))'),
        Alert("MarioServingDown", "critical",
              'up{job="serving"} == 0',
              "The action API at {{ $labels.instance }} does not answer",
              "Its metrics page has not been reached for a minute.", pending="1m"),
        Alert("MarioServingNoChampion", "critical",
              'sum by (job) (mario_serving_version_info{role="champion"}) == 0 '
              'or (up{job="serving"} == 1) '
              'unless on (job) mario_serving_version_info{role="champion"}',
              "The action API has no champion to answer with",
              "No worker has loaded a version; every request is refused.", pending="5m"),
        Alert("MarioServingErrors", "critical",
              "mario:serving_failures:rate5m / (mario:serving_requests:rate5m > 0) > 0.01",
              "{{ $value | humanizePercentage }} of the requests fail",
              "More than 1% of the answers were 5xx over 5 minutes.", pending="5m"),
        # 66 ms is the time of one decision at 15 decisions a second.
        Alert("MarioServingSlow", "warning",
              "histogram_quantile(0.99, sum by (le) "
              '(rate(mario_serving_inference_seconds_bucket{role="champion"}[5m]))) > 0.066',
              "1 inference call in 100 takes longer than {{ $value | humanizeDuration }}",
              "A client that decides 15 times a second misses its deadline.", pending="10m"),
        Alert("MarioServingSwapRefused", "warning",
              'increase(mario_serving_swaps_total{result="refused"}[10m]) > 0',
              "A {{ $labels.role }} version was refused",
              "It is broken or fails its golden answers; the former version stays in service."),
        Alert("MarioServingBehindLedger", "warning",
              "mario_champion_info "
              'unless on (model, version) (mario_serving_version_info{role="champion"} > 0) '
              'and on (model) mario_serving_version_info{role="champion"}',
              "The action API does not serve version {{ $labels.version }} of {{ $labels.model }}",
              "The ledger has named it champion for 5 minutes.", pending="5m"),
        Alert("MarioServingObservationDrift", "warning",
              "abs(mario_serving_observation_brightness_drift) > 3 "
              "or abs(mario_serving_observation_contrast_drift) > 3 "
              "or mario_serving_observation_black_ratio > 0.5 "
              "or mario_serving_observation_frozen_ratio > 0.5",
              "Clients send screens unlike those of training",
              "Brightness, contrast, black or frozen frames are far from the training data.",
              pending="10m"),
        Alert("MarioServingActionsCollapsed", "warning",
              "mario_serving_action_entropy_ratio < 0.02 "
              "and on () sum(rate(mario_serving_actions_total[5m])) > 1",
              "The champion answers with one action only",
              'Entropy of the actions is {{ $value | printf "%.3f" }} of its maximum.',
              pending="15m"),
    ),
)  # fmt: skip
