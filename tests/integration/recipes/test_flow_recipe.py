"""A new flow is two files: its module under `flows/`, and its deployment in `prefect.yaml`."""

from __future__ import annotations

import json
from pathlib import Path

from flows.embedded_server import running
from tests.support.recipes import changed_files, copy_tree, run

MODULE = '''\
"""The flow `plan`: say how long an experiment trains, and what it needs of a machine."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from flows import stages
from flows.decisions import Ending, resources_for
from flows.parameters import FlowParameters, experiment_name
from mario.config.experiment import load_config


class PlanParameters(FlowParameters):
    """An experiment to plan."""

    config: str = Field("configs/demo.yaml", description="Path of the experiment's YAML.")
    steps_per_second: float = Field(1_000.0, gt=0, description="Speed of the machine.")


def _run_name() -> str:
    return f"plan {experiment_name(PlanParameters.of_this_run().config)}"


@flow(name="plan", flow_run_name=_run_name, persist_result=False)
def plan(parameters: PlanParameters = PlanParameters()) -> State[Any]:
    """Say how long an experiment trains, and what it needs of a machine."""

    def work() -> str:
        config = load_config(parameters.config)
        hours = config.total_steps / parameters.steps_per_second / 3600
        return f"{hours:.4f} h with {resources_for(config).memory_gib} GiB of memory"

    line = stages.run_stage("plan", experiment_name(parameters.config), work)
    return stages.to_state(Ending("COMPLETED", "Planned", line), line)
'''

DEPLOYMENT = """
  - name: plan
    version: "{{ $MARIO_GIT_COMMIT }}"
    description: Say how long an experiment trains, and what it needs of a machine.
    tags: [mario]
    entrypoint: flows/plan.py:plan
    parameters:
      parameters: {config: configs/smoke.yaml, steps_per_second: 0.1}
    enforce_parameter_schema: true
    work_pool: *cpu
    schedules:
      - {slug: noon, cron: "0 12 * * *", timezone: UTC, active: true}
"""

#: Does what `mario flows setup`, `deploy` and `status` do, and calls the flow as deployed.
USE = """
import json
from pathlib import Path

from prefect.client.orchestration import get_client

from flows.deployments import deployment_names, load_flow
from flows.prefect_api import Server, our_deployments
from flows.setup import deploy, set_up, summary
from flows.status import status

file = Path("prefect.yaml")
with Server.connect() as server:
    set_up(server, pools=["process"])
    deployed = summary(deploy(server, file, only=["plan"]))
    shown = status(server, deployment_names(file))
    deployment = our_deployments(server)["plan/plan"]
flow = load_flow(deployment["entrypoint"])
state = flow(**flow.validate_parameters(deployment["parameters"]), return_state=True)
with get_client(sync_client=True) as client:
    name = client.read_flow_run(state.state_details.flow_run_id).name
form = deployment["parameter_openapi_schema"]["definitions"]["PlanParameters"]["properties"]
print(json.dumps([deployed, shown, sorted(form), state.name, state.message, name]))
"""


def test_a_new_flow_is_two_files(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    (tree / "flows/plan.py").write_text(MODULE)
    deployments = tree / "prefect.yaml"
    deployments.write_text(deployments.read_text() + DEPLOYMENT)
    assert changed_files(tree) == ["flows/plan.py", "prefect.yaml"]

    with running(tmp_path / "server") as server:
        server.wait()
        said = run(
            tree, "-c", USE, PREFECT_API_URL=server.api_url, PREFECT_HOME=str(tmp_path / "home")
        )
    deployed, shown, form, *ended = json.loads(said.splitlines()[-1])
    assert "created   deployment plan/plan" in deployed
    (line,) = (line for line in shown.splitlines() if line.startswith("  plan/plan at "))
    assert line.endswith(" on process/cpu, 0 12 * * * UTC")
    assert form == ["config", "steps_per_second"]
    assert ended == ["Planned", "1.4222 h with 5 GiB of memory", "plan smoke"]
    assert changed_files(tree) == ["flows/plan.py", "prefect.yaml"]
