"""Describe a sweep and its best trial."""

from __future__ import annotations

import json
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from mario.config.experiment import ExperimentConfig
from mario.errors import StoreError
from mario.jobs.context import JobContext
from mario.jobs.sweeps.storage import load_trials
from mario.jobs.sweeps.study import ERROR_ATTRIBUTE, NUMBER_ATTRIBUTE, RUN_ATTRIBUTE


def best_of(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """Choose the completed trial with the highest score; the first of equals."""
    ended = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return max(ended, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


def describe_sweep(name: str, context: JobContext) -> str:
    """Describe a sweep: one line for each trial, then the number of trials in each state.

    Raises:
        StoreError: there is no such sweep.
    """
    trials = load_trials(name, context.settings.database_url)
    lines = [_trial_line(trial) for trial in trials]
    counts = {
        state.name.lower(): sum(trial.state == state for trial in trials) for state in TrialState
    }
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return "\n".join([*lines, f"{name}: {len(trials)} trials: {shown or 'none yet'}"])


def _trial_line(trial: FrozenTrial) -> str:
    number = trial.user_attrs.get(NUMBER_ATTRIBUTE, trial.number)
    score = trial.value
    if score is None and trial.intermediate_values:
        score = trial.intermediate_values[max(trial.intermediate_values)]
    retries = len(trial.system_attrs.get("retry_history", ()))
    again = f", taken up {retries}x" if retries else ""
    failed = trial.state == TrialState.FAIL
    why = trial.user_attrs.get(ERROR_ATTRIBUTE) if failed else None
    return (
        f"{number:>4} {trial.state.name.lower():<9} "
        f"{'-' if score is None else f'{score:.4f}':<7} "
        f"{trial.user_attrs.get(RUN_ATTRIBUTE, '-'):<29} {_values_text(trial.params)}{again}"
        + (f" ({why})" if why else "")
    )


def _values_text(values: dict[str, Any]) -> str:
    return " ".join(
        f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in values.items()
    )


def describe_best(name: str, context: JobContext) -> str:
    """Describe the best trial, and how to register or repeat it.

    Raises:
        StoreError: there is no such sweep, or none of its trials is complete.
    """
    best = _best(name, context)
    run_id = best.user_attrs[RUN_ATTRIBUTE]
    settings = " ".join(f"--set {key}={json.dumps(value)}" for key, value in best.params.items())
    return (
        f"best trial {best.user_attrs[NUMBER_ATTRIBUTE]}: score "
        f"{best.value:.4f} on selection seeds, run {run_id}\n"
        f"{_values_text(best.params)}\n"
        f"register it with: mario register {run_id}\n"
        f"train with its values: mario train --config … {settings}"
    )


def best_config(name: str, context: JobContext) -> ExperimentConfig:
    """Load the experiment of the best trial, under the trial's name.

    Raises:
        StoreError: there is no such sweep, or none of its trials is complete.
    """
    best = _best(name, context)
    config = context.store.runs.get(str(best.user_attrs[RUN_ATTRIBUTE])).config
    return ExperimentConfig.model_validate(dict(config))


def _best(name: str, context: JobContext) -> FrozenTrial:
    trials = load_trials(name, context.settings.database_url)
    best = best_of(trials)
    if best is None:
        raise StoreError(
            f"sweep {name} has {len(trials)} trials, and none of them has come to its end; "
            "expected one at least; see `mario sweep status`"
        )
    return best
