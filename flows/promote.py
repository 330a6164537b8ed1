"""The flow `promote`: judge a registered version, and promote it if the gate says so."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from flows import stages
from flows.artifacts import file_link, safely
from flows.decisions import ending_of_verdict
from flows.parameters import FlowParameters, PolicyName, experiment_name
from mario.config.experiment import load_config
from mario.config.levels import model_name
from mario.jobs.context import JobContext
from mario.jobs.report import report_verdict
from mario.jobs.versions import fetch_version


class PromoteParameters(FlowParameters):
    """A version to judge against the champion, and to promote if the gate says so."""

    config: str = Field("configs/demo.yaml", description="Experiment with task, levels and gate.")
    overrides: tuple[str, ...] = Field((), description="key=value each, such as gate.max_units=40.")
    policy: PolicyName = Field("challenger", description="challenger or a version number.")


def _run_name() -> str:
    given = PromoteParameters.of_this_run()
    return f"promote {given.policy} of {experiment_name(given.config)}"


@flow(name="promote", flow_run_name=_run_name, persist_result=False)
def promote(parameters: PromoteParameters = PromoteParameters()) -> State[Any]:  # noqa: B008
    """Judge a registered version against the champion, and promote it if the gate says so.

    Ends as Promoted, Kept, Unchanged or Failed.
    """
    if (too_often := stages.out_of_attempts()) is not None:
        return too_often
    with JobContext.open() as context:
        config = load_config(parameters.config, parameters.overrides)
        stages.prepare(config, context)
        version = stages.run_stage(
            "fetch",
            f"{model_name(config.task)} {parameters.policy}",
            lambda: fetch_version(parameters.policy, config.task, context).version,
        )
        judged, _ = stages.judge_and_promote(config, version, context)
        links = {}
        if (verdict_id := judged.verdict_id) is not None:
            report = safely("the report", lambda: report_verdict(verdict_id, context))
            links = {} if report is None else {"report": file_link(report, context)}
        stages.show_judgement(config, judged, context, links)
        return stages.to_state(
            ending_of_verdict(judged.decision, version, judged.lines), judged.decision
        )
