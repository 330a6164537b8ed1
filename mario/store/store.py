"""`ExperimentStore`: access to the database for jobs, flows, serving and the CLI."""

from __future__ import annotations

from typing import Self

from mario.errors import StoreError
from mario.store import migrate
from mario.store.engine import make_engine, redact, sqlite_path
from mario.store.evaluations import Evaluations
from mario.store.ledger import Ledger
from mario.store.runs import Runs
from mario.store.serving import ServingComparisons
from mario.store.versions import Versions


class ExperimentStore:
    """The database with runs, evaluations, versions and the ledger, on SQLite or PostgreSQL.

    Attributes:
        url: the database's URL.
        engine: SQLAlchemy's engine.
        runs: runs with their episodes, health and checkpoints.
        evaluations: evaluations with their episodes, and verdicts.
        versions: registered versions and their states.
        ledger: promotions and alpha accounts.
        serving: comparisons of challengers with the champion in serving.

    Example:
        >>> with ExperimentStore.open("sqlite:///runs/mario.db") as store:  # doctest: +SKIP
        ...     champion = store.ledger.champion("mario-1-1")
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = make_engine(url)
        self.runs = Runs(self.engine)
        self.evaluations = Evaluations(self.engine)
        self.versions = Versions(self.engine)
        self.ledger = Ledger(self.engine)
        self.serving = ServingComparisons(self.engine)

    @classmethod
    def open(cls, url: str, *, create: bool = True) -> Self:
        """Open a database and check its schema revision.

        Args:
            url: ``sqlite:///runs/mario.db`` or ``postgresql+psycopg2://…``.
            create: create or upgrade a SQLite database. A database on a server is upgraded by
                ``mario store upgrade`` only. Pass False to read an existing database.

        Raises:
            StoreError: if the database is missing, unreachable, or at another revision.
        """
        path = sqlite_path(make_engine(url).url)
        if path is not None:
            if create:
                migrate.upgrade(url)
            elif not path.is_file():
                raise StoreError(
                    f"there is no database at {redact(url)}; expected a file; create it with "
                    "`mario store upgrade`, or name another with MARIO_DATABASE_URL"
                )
        store = cls(url)
        try:
            migrate.require_current(store.engine)
        except BaseException:
            store.close()
            raise
        return store

    @property
    def redacted_url(self) -> str:
        """The database's URL without its password, for messages."""
        return redact(self.url)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
