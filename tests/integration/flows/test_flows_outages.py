"""Test flows during outages, concurrent promotions and in containers that are too small.

This process calls the flows, on a real Prefect server. `outage_at` starts an outage at the first
call of a given function, which a kill from outside cannot time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from flows import newer_attempt, stages
from flows import promote as promoting
from flows import sweep as sweeps
from flows.decisions import Machine, resources_for
from flows.parameters import TrainParameters
from flows.promote import PromoteParameters, promote
from flows.train import train
from mario.config.experiment import load_config
from mario.errors import ArtefactError, RegistryUnavailableError
from mario.jobs.context import JobContext, JobSettings
from mario.jobs.pipeline import GateResult, gate_stage
from mario.jobs.promote import promote_verdict
from mario.jobs.versions import fetch_version
from mario.registry.registry import ModelRegistry
from mario.store import migrate
from tests.support.mlflow_server import MlflowServer
from tests.support.policies import GOOD, STUCK, write_odds_policy
from tests.support.postgres import PostgresServer
from tests.support.prefect_server import PrefectServer, prefect_server, reporting_to
from tests.support.sweeps import write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMOKE = "configs/smoke.yaml"
#: As for two versions of known skill in `test_flows_server.py`.
GATE = ("game.actions=complex", "gate.primary=progress", "gate.alpha=0.4", "gate.max_units=60",
        "gate.min_units=8", "gate.max_latency_ratio=1000")  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as made, reporting_to(made):
        yield made


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server that the test may kill."""
    made = PostgresServer()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    made = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobContext:
    return use(JobContext(JobSettings.embedded(tmp_path / "runs")), monkeypatch)


@pytest.fixture
def deployed(server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry stages as in a deployed flow run, with short delays."""
    monkeypatch.setattr(newer_attempt, "is_deployed", lambda: True)
    monkeypatch.setattr(stages, "RETRY_DELAYS_SECONDS", (2.0, 8.0, 20.0, 60.0))


def use(context: JobContext, monkeypatch: pytest.MonkeyPatch) -> JobContext:
    """Let flows read the addresses of a context from the environment."""
    monkeypatch.setenv("MARIO_RUNS_DIR", str(context.settings.runs_dir))
    monkeypatch.setenv("MARIO_DATABASE_URL", context.settings.database_url)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", context.settings.tracking_uri)
    return context


def outage_at(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, server: PostgresServer | MlflowServer
) -> list[threading.Thread]:
    """Kill a server at the first call of a function, and start it again two seconds later.

    Returns:
        What starts it again, one for each call: to be joined, and counted.
    """
    real: Callable[..., Any] = getattr(module, name)
    calls: list[threading.Thread] = []

    def called(*arguments: Any, **more: Any) -> Any:
        starting: threading.Thread = threading.Timer(2.0, server.start)
        calls.append(starting)
        if len(calls) == 1:
            server.kill()
            starting.start()
        return real(*arguments, **more)

    monkeypatch.setattr(module, name, called)
    return calls


def register_policies(context: JobContext, *odds: tuple[float, ...]) -> None:
    """Register policies of known skill as versions 1, 2, …"""
    context.settings.runs_dir.mkdir(parents=True, exist_ok=True)
    registry = context.registry
    for number, each in enumerate(odds):
        folder = context.settings.runs_dir / f"policy-{number}"
        write_odds_policy(folder, each, config_hash=str(number) * 64)
        registry.register("mario-1-1", folder, run_id=None)


@pytest.mark.usefixtures("deployed")
def test_a_sweep_completes_despite_a_database_restart_at_its_end(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url(postgres.create_database())
    migrate.upgrade(url)
    use(
        JobContext(JobSettings(tmp_path / "runs", url, f"sqlite:///{tmp_path / 'mlflow.db'}")),
        monkeypatch,
    )
    calls = outage_at(monkeypatch, sweeps, "describe_best", postgres)
    path = write_sweep(tmp_path / "sweep.yaml", trials=1, small={"sinks.mlflow": False})
    parameters = sweeps.SweepParameters(name="over", file=str(path))
    state = sweeps.sweep(parameters, return_state=True)
    calls[0].join()
    assert state.is_completed(), state
    assert "best trial 0" in state.message
    assert len(calls) >= 2


@pytest.mark.usefixtures("deployed")
def test_a_seed_is_assigned_after_a_database_restart(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url(postgres.create_database())
    migrate.upgrade(url)
    context = JobContext(JobSettings(tmp_path / "runs", url, f"sqlite:///{tmp_path / 'mlflow.db'}"))
    calls = outage_at(monkeypatch, stages.jobs, "next_seed", postgres)

    @flow
    def beginning() -> int:
        config, _ = stages.begin(TrainParameters(config=SMOKE, next_seed=True), context)
        return config.seed

    assert beginning() == 1
    calls[0].join()
    assert len(calls) >= 2


@pytest.mark.usefixtures("deployed")
def test_a_promotion_waits_for_a_restart_of_mlflow(
    mlflow: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = use(
        JobContext(
            JobSettings(tmp_path / "runs", f"sqlite:///{tmp_path / 'mario.db'}", mlflow.uri)
        ),
        monkeypatch,
    )
    register_policies(context, GOOD)
    calls = outage_at(monkeypatch, promoting, "fetch_version", mlflow)
    parameters = PromoteParameters(config=SMOKE, overrides=GATE, policy="1")
    state = promote(parameters, return_state=True)
    calls[0].join()
    assert state.is_completed(), state
    assert state.name == "Promoted", state
    assert len(calls) >= 2


def test_an_unreachable_registry_does_not_count_as_a_broken_artefact(
    mlflow: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow reports both by the same error; the download asks the registry to tell them apart."""
    context = JobContext(
        JobSettings(tmp_path / "runs", f"sqlite:///{tmp_path / 'mario.db'}", mlflow.uri)
    )
    registry = context.registry
    folder = write_odds_policy(tmp_path / "good", GOOD).folder
    version = registry.register("mario-1-2", folder, run_id=None).version
    calls = outage_at(monkeypatch, ModelRegistry, "download", mlflow)
    with pytest.raises(RegistryUnavailableError):
        fetch_version(str(version), "1-2", context)
    calls[0].join()

    def broken(*_: Any) -> None:
        raise ArtefactError("its digest is another")

    monkeypatch.setattr(ModelRegistry, "download", broken)
    with pytest.raises(ArtefactError, match="its digest is another"):
        fetch_version(str(version), "1-2", context)


@pytest.mark.usefixtures("server")
def test_a_version_judged_against_a_former_champion_is_judged_again(
    context: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version is promoted between the verdict and the promotion."""
    register_policies(context, STUCK, GOOD, GOOD)
    registry = context.registry
    registry.promote("mario-1-1", 1, verdict_id=None, promoted_by="test")
    config = load_config(SMOKE, GATE)
    other = gate_stage(config, 3, context)
    assert other.decision == "promote"
    judgements: list[GateResult] = []

    def gate(*arguments: Any) -> GateResult:
        judgements.append(gate_stage(*arguments))
        if len(judgements) == 1:
            promote_verdict(str(other.verdict_id), context)
        return judgements[-1]

    monkeypatch.setattr(stages.jobs, "gate_stage", gate)
    parameters = PromoteParameters(config=SMOKE, overrides=GATE, policy="2")
    state = promote(parameters, return_state=True)
    assert state.is_completed(), state
    assert judgements[0].decision == "promote", "it was better than the former champion"
    store = context.store
    ledger = store.ledger.history("mario-1-1")
    met = {
        verdict.id: verdict.champion_version for verdict in store.evaluations.verdicts("mario-1-1")
    }
    assert [met[str(each.verdict_id)] for each in judgements] == [1, 3]
    assert (state.name == "Promoted") == (judgements[1].decision == "promote")
    versions_in_turn = [1, 3, *((2,) if state.name == "Promoted" else ())]
    assert [row.version for row in ledger] == versions_in_turn, "no promotion is lost"
    for row, before in zip(ledger[1:], ledger, strict=False):
        assert met[str(row.verdict_id)] == row.previous_version == before.version


@pytest.mark.usefixtures("deployed")
@pytest.mark.parametrize("called", ["train", "sweep"])
def test_an_experiment_too_large_for_the_container_fails_at_once(
    context: JobContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: str
) -> None:
    """The container was sized for another experiment; the kernel would kill each attempt."""
    large = ("algorithm.buffer_size=1000000",)
    needed = resources_for(load_config("configs/dqn_baseline.yaml", large)).memory_gib
    monkeypatch.setattr(stages, "this_machine", lambda: Machine(memory_gib=5.0))
    if called == "train":
        wanted = TrainParameters(config="configs/dqn_baseline.yaml", overrides=large)
        state: Any = train(wanted, return_state=True)
    else:
        rates = {"kind": "categorical", "choices": [1e-4, 2e-4]}
        path = write_sweep(
            tmp_path / "sweep.yaml", experiment="configs/dqn_baseline.yaml",
            overrides={"algorithm.buffer_size": 1_000_000},
            space={"algorithm.learning_rate": rates},
        )  # fmt: skip
        state = sweeps.sweep(
            sweeps.SweepParameters(name="large", file=str(path)), return_state=True
        )
    assert state.is_failed()
    assert "got 5.0 GiB of memory here for dqn_baseline" in state.message
    assert f"mem_limit={needed}g (pool docker)" in state.message
    assert not context.settings.runs_dir.exists(), "nothing was started"
