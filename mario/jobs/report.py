"""Report: the page of a stored verdict, with videos, and its JSON, made from the store."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from mario.config.game import ConsoleName
from mario.config.levels import task_of_model
from mario.errors import EvaluationError
from mario.evaluation.protocol import record_frames
from mario.evaluation.records import EpisodeRecord, PairedUnit, pair_records
from mario.evaluation.seeds import SeedFamily, units_of
from mario.evaluation.verdict import Verdict
from mario.files import write_whole
from mario.game.video import write_mp4
from mario.jobs.context import JobContext
from mario.jobs.policies import LoadedPolicy, load_policy
from mario.pages.layout import write_page
from mario.pages.verdict_page import Video, pick_episodes, render_verdict
from mario.store.records import StoredVerdict
from mario.store.store import ExperimentStore


def report_verdict(
    verdict_id: str,
    context: JobContext,
    output: Path | None = None,
    *,
    console: ConsoleName = "native",
) -> Path:
    """Write a verdict's page, and the verdict as JSON beside it.

    The JSON has the page's name with ``.json`` and is valid under `VERDICT_SCHEMA`.

    Args:
        verdict_id: a stored verdict.
        context: settings, store and registry.
        output: the HTML file; None puts it into ``runs/reports``.
        console: the console that records the videos.

    Returns:
        The page.

    Raises:
        EvaluationError: `output` ends in ``.json``, the name of the other file.
        StoreError: there is no such verdict.
        RegistryError, ArtefactError: its challenger cannot be loaded to record the videos.
    """
    target = output or context.settings.runs_dir / "reports" / f"{verdict_id}.html"
    if target.suffix == ".json":
        raise EvaluationError(
            f"got {target} for the page; expected an HTML file: the JSON is put beside it under "
            f"the same name; use {target.with_suffix('.html')}"
        )
    stored = context.store.evaluations.verdict(verdict_id)
    verdict = Verdict.from_dict(dict(stored.detail))
    pairs = counted_pairs(context.store, stored, verdict)
    task = task_of_model(stored.model)
    videos: list[Video] = []
    if stored.challenger_version is not None:
        # A verdict that rejects a network for its answers needs a page, too.
        challenger = load_policy(str(stored.challenger_version), task, context, check_golden=False)
        videos = [
            _film(name, record, challenger, console)
            for name, record in pick_episodes(pairs, verdict.rule.primary).items()
        ]
    page = render_verdict(
        verdict,
        pairs,
        command=_command(stored),
        challenger_label=_label(stored.model, stored.challenger_version, "the challenger"),
        champion_label=_label(stored.model, stored.champion_version, "the random policy"),
        title=_title(stored),
        videos=videos,
    )
    written = write_page(target, page)
    document = json.dumps(verdict.to_dict(), indent=2, allow_nan=False) + "\n"
    write_whole(written.with_suffix(".json"), document.encode())
    return written


def counted_pairs(
    store: ExperimentStore, stored: StoredVerdict, verdict: Verdict
) -> tuple[PairedUnit, ...]:
    """Load the pairs of episodes that a verdict counted, in order of play."""
    test_key = store.evaluations.test_key(stored)
    units = units_of(verdict.levels, SeedFamily.CONFIRMATION, test_key, verdict.units)
    return pair_records(
        store.evaluations.records(stored.challenger_evaluation_id),
        store.evaluations.records(stored.champion_evaluation_id),
        units,
    )


def _film(name: str, record: EpisodeRecord, policy: LoadedPolicy, console: ConsoleName) -> Video:
    with tempfile.TemporaryDirectory(prefix="mario-film-") as folder:
        path = Path(folder) / "episode.mp4"
        frames = record_frames(policy.policy, record.unit, console)
        write_mp4(path, frames, policy.policy.frame_skip)
        mp4 = path.read_bytes()
    caption = (
        f"{name} episode of {policy.label}: level {record.level}, seed {record.seed}, "
        f"{record.furthest_px} px of {record.level_length_px} px, ended by {record.end_reason}"
    )
    return Video(name, caption, mp4)


def _label(model: str, version: int | None, otherwise: str) -> str:
    return otherwise if version is None else f"{model} version {version}"


def _command(stored: StoredVerdict) -> str:
    if stored.challenger_version is None:
        return (
            "# The challenger was no registered version, so there is no policy to load:\n"
            f"# {stored.challenger_digest}. Register it and test it again with `mario gate`."
        )
    return f"mario gate --again {stored.id}"


def _title(stored: StoredVerdict) -> str:
    return f"{stored.model}: {stored.decision}"
