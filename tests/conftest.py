"""Fixtures that every test may use: a real PostgreSQL, and fresh databases on both engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mario.jobs.context import JobContext, JobSettings
from mario.store import migrate
from mario.store.store import ExperimentStore
from tests.support.postgres import PostgresServer

if TYPE_CHECKING:
    from tests.support.prefect_server import Receiver


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A real PostgreSQL server, started once a session."""
    server = PostgresServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresServer) -> str:
    """URL of one empty database for the whole session; ``migrate.upgrade`` it first."""
    return postgres_server.url(postgres_server.create_database())


@pytest.fixture(scope="session")
def _postgres_template(postgres_server: PostgresServer) -> str:
    name = postgres_server.create_database()
    migrate.upgrade(postgres_server.url(name))
    return name


@pytest.fixture
def postgres_database(postgres_server: PostgresServer, _postgres_template: str) -> Iterator[str]:
    """URL of a fresh, upgraded PostgreSQL database, gone after the test."""
    name = postgres_server.create_database(_postgres_template)
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a fresh, upgraded database: the test runs once on each engine."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres_database")
        return url
    url = f"sqlite:///{tmp_path / 'store' / 'mario.db'}"
    migrate.upgrade(url)
    return url


@pytest.fixture
def store(database_url: str) -> Iterator[ExperimentStore]:
    """An opened store on a fresh database, once on each engine."""
    with ExperimentStore.open(database_url) as opened:
        yield opened


@pytest.fixture
def context(tmp_path: Path) -> Iterator[JobContext]:
    """What jobs work with, in files of the test's own under ``runs``."""
    with JobContext(JobSettings.embedded(tmp_path / "runs")) as opened:
        yield opened


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow file just set up; setting one up takes seconds, copying it none."""
    from mario.tracking.mlflow_client import prepare_tracking

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    prepare_tracking(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """A web page that takes notifications."""
    from tests.support.prefect_server import Receiver

    made = Receiver()
    yield made
    made.stop()
