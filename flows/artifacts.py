"""Show a flow run in Prefect's page: progress, learning curve, verdict, links.

An error here is logged and never fails the flow run.
"""

from __future__ import annotations

import contextvars
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.utilities.context import get_task_and_flow_run_ids

from flows.decisions import progress_percent
from mario.config.experiment import ExperimentConfig
from mario.jobs.attempts import Trained
from mario.jobs.context import JobContext
from mario.pages.learning_curve import CurvePoint, learning_curve
from mario.training.sinks import Progress, SelectionDone

log = logging.getLogger(__name__)

#: Interval at which the progress bar is updated.
_PROGRESS_SECONDS = 2.0
_BARS = "▁▂▃▄▅▆▇█"


def safely(what: str, show: Callable[[], Any]) -> Any:
    """Call `show` and return its result; log an error and return None if it fails."""
    try:
        return show()
    except Exception as error:  # a page is not worth a failed flow run
        log.warning("%s is not shown: %s: %s", what, type(error).__name__, error)
        return None


def artifact_key(*parts: str) -> str:
    """Join parts to an artifact key as Prefect requires it: lower-case letters, digits, dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


class TrainingProgress:
    """The progress bar of a training run, which a background thread writes."""

    def __init__(self, config: ExperimentConfig, run_id: str) -> None:
        """Prepare the progress bar of the current task run.

        Args:
            config: the experiment.
            run_id: the training run.
        """
        self._name = config.name
        self._run_id = run_id
        self._task_run_id, self._flow_run_id = get_task_and_flow_run_ids()
        self._latest: Progress | None = None
        self._selections: list[SelectionDone] = []
        self._ended = threading.Event()
        self._context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=lambda: self._context.run(safely, "progress", self._write), daemon=True
        )

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Write the last numbers and stop the thread."""
        self._ended.set()
        self._thread.join(30)

    def progress(self, progress: Progress) -> None:
        """Record the newest numbers."""
        self._latest = progress

    def selection(self, selection: SelectionDone) -> None:
        """Record a selection's score."""
        self._selections.append(selection)

    def _write(self) -> None:
        with get_client(sync_client=True) as client:
            shown: tuple[int, int] | None = None
            created = client.create_artifact(
                ArtifactCreate(
                    type="progress",
                    key=artifact_key("training", self._name),
                    description=self._description(),
                    data=0.0,
                    task_run_id=self._task_run_id,
                    flow_run_id=self._flow_run_id,
                )
            )
            while True:
                last_round = self._ended.wait(_PROGRESS_SECONDS)
                latest = self._latest
                now = (latest.total_steps if latest else 0, len(self._selections))
                if now != shown:
                    shown = now
                    safely("progress", lambda: client.update_artifact(created.id, self._update()))
                if last_round:
                    return

    def _update(self) -> ArtifactUpdate:
        latest = self._latest
        percent = progress_percent(latest.total_steps, latest.target_steps) if latest else 0.0
        return ArtifactUpdate(data=round(percent, 1), description=self._description())

    def _description(self) -> str:
        latest = self._latest
        if latest is None:
            return f"Training {self._name} ({self._run_id}) begins."
        far = latest.mean_furthest_px
        left = latest.seconds_left
        parts = [
            f"Training {self._name} ({self._run_id}): {latest.total_steps:,} of "
            f"{latest.target_steps:,} steps",
            f"{latest.steps_per_second:,.0f} steps/s",
            "no episode yet" if far is None else f"mean furthest x {far:.0f} px",
            f"health {latest.state}",
        ]
        if left is not None:
            parts.append(f"{int(left // 60)}:{int(left % 60):02d} left")
        if self._selections:
            newest = self._selections[-1]
            parts.append(f"selection score {newest.score:.3f} (best {newest.best_score:.3f})")
        return ", ".join(parts)


def show_training(config: ExperimentConfig, trained: Trained, context: JobContext) -> None:
    """Show the learning curve of a run."""

    def show() -> None:
        runs = context.store.runs
        run = runs.get(trained.run_id)
        points = learning_curve(runs.episodes(trained.run_id), config.total_steps)
        create_markdown_artifact(
            curve_page(config, trained, points, mlflow_link(context, run.mlflow_run_id)),
            key=artifact_key("learning-curve", config.name),
            description=f"Learning curve of {trained.run_id}",
        )

    safely("the learning curve", show)


def curve_page(
    config: ExperimentConfig, trained: Trained, points: Sequence[CurvePoint], tracked: str
) -> str:
    """Write a learning curve as Markdown: a spark line and a table with a row for each point."""
    lines = [
        f"## {config.name} on {config.task}: {trained.status}",
        "",
        f"Run `{trained.run_id}`, {trained.total_steps:,} steps"
        + (f" at {trained.steps_per_second:,.0f} steps/s" if trained.steps_per_second else "")
        + (f", attempt {trained.attempt}" if trained.attempt > 1 else "")
        + (f". {trained.reason}" if trained.reason else "."),
        "",
        f"MLflow: {tracked}",
        "",
    ]
    if not points:
        return "\n".join([*lines, "No episode ended."])
    lines += [
        f"Mean furthest x: `{spark([point.mean_furthest_px for point in points])}`",
        "",
        "| steps up to | episodes | mean furthest x (px) | cleared |",
        "|---:|---:|---:|---:|",
        *(
            f"| {point.steps:,} | {point.episodes} | {point.mean_furthest_px:,.0f} "
            f"| {point.clear_ratio:.0%} |"
            for point in points
        ),
    ]
    return "\n".join(lines)


def spark(values: Sequence[float]) -> str:
    """Draw values as a line of bars, scaled from 0 to the greatest value.

    Example:
        >>> spark([0, 1, 2])
        '▁▅█'
    """
    top = max(values, default=0.0)
    if top <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(7, round(7 * max(value, 0.0) / top))] for value in values)


def show_verdict(
    model: str,
    title: str,
    verdict_id: str,
    lines: Sequence[str],
    rows: Sequence[dict[str, Any]],
    links: Mapping[str, str],
) -> None:
    """Show a verdict as a page with links, and its numbers as a table.

    The artifacts' keys name the model, so that Prefect lists a model's verdicts as versions of one
    artifact.
    """
    page = verdict_page(title, verdict_id, lines, links)
    safely(
        "the verdict",
        lambda: create_markdown_artifact(
            page, key=artifact_key("verdict", model), description=f"Verdict {verdict_id}"
        ),
    )
    safely(
        "the verdict's numbers",
        lambda: create_table_artifact(
            [dict(row) for row in rows],
            key=artifact_key("numbers", model),
            description=f"The numbers of verdict {verdict_id}",
        ),
    )
    if target := re.search(r"\]\((https?://.+)\)$", links.get("report", "")):
        safely(
            "the link to the report",
            lambda: create_link_artifact(
                target[1],
                link_text="The verdict with every number",
                key=artifact_key("report", model),
                description=f"Report of verdict {verdict_id}",
            ),
        )


def verdict_page(
    title: str, verdict_id: str, lines: Sequence[str], links: Mapping[str, str]
) -> str:
    """Write a verdict as Markdown: its text, the command that repeats it, and links."""
    paths = any(link.startswith("`/") for link in links.values())
    return "\n".join(
        [
            f"## {title}",
            "",
            *(f"{line}  " if not line.startswith("- ") else line for line in lines),
            "",
            f"Verdict `{verdict_id}`; again: `mario gate --again {verdict_id}`",
            "",
            *(f"- {name}: {link}" for name, link in links.items()),
            *(("", "Set `MARIO_RUNS_URL`, and these paths become links.") if paths else ()),
        ]
    )


def show_page(key: str, title: str, lines: Sequence[str]) -> None:
    """Show lines of text under a title."""
    page = "\n".join([f"## {title}", "", *lines])
    safely(title, lambda: create_markdown_artifact(page, key=artifact_key(key), description=title))


def mlflow_link(context: JobContext, mlflow_run_id: str | None) -> str:
    """Link to a run in MLflow's page, in Markdown; name the run if no web server shows it."""
    if mlflow_run_id is None:
        return "not tracked"
    base = os.environ.get("MARIO_MLFLOW_URL") or context.settings.tracking_uri
    if not base.startswith(("http://", "https://")):
        return f"run `{mlflow_run_id}` in `{base}`"
    experiment = context.tracking.client.get_run(mlflow_run_id).info.experiment_id
    url = f"{base.rstrip('/')}/#/experiments/{experiment}/runs/{mlflow_run_id}"
    return f"[run {mlflow_run_id}]({url})"


def file_link(path: Path, context: JobContext) -> str:
    """Link to a file in the runs folder, in Markdown; without MARIO_RUNS_URL, its path.

    MARIO_RUNS_URL is the address of a web server that serves the runs folder. Without it there is
    no link: browsers open no `file://` from a page that was served over HTTP.
    """
    base = os.environ.get("MARIO_RUNS_URL")
    if base:
        inside = path.resolve().relative_to(context.settings.runs_dir.resolve())
        return f"[{path.name}]({base.rstrip('/')}/{quote(inside.as_posix())})"
    return f"`{path.resolve()}`"
