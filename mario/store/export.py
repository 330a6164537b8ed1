"""Export every table as one Parquet file, from one consistent snapshot."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from mario.errors import StoreError
from mario.store.engine import translated
from mario.store.store import ExperimentStore
from mario.store.tables import Base
from mario.store.types import StrEnumType, UInt64, UtcDateTime

_ROWS_A_GROUP = 50_000


def table_names() -> tuple[str, ...]:
    """Name the tables, parents before children."""
    return tuple(table.name for table in Base.metadata.sorted_tables)


def export_parquet(
    store: ExperimentStore, folder: Path | str, *, tables: Sequence[str] | None = None
) -> dict[str, int]:
    """Write tables as ``folder/<table>.parquet``; each file is complete or absent.

    All tables are read in one transaction, so that they are consistent while others write.
    Times are UTC with microseconds, seeds unsigned 64-bit, JSON columns text.

    Args:
        store: an opened store.
        folder: created if it is missing; files of an earlier export are replaced.
        tables: names of tables; None exports all.

    Returns:
        The number of rows by table.

    Raises:
        StoreError: if a table is unknown, the folder cannot be written, pyarrow is not installed,
            or the database is unreachable.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise StoreError(
            "exporting needs the package pyarrow, which is not installed; expected an "
            "installation that can train: pip install 'mario-mlops[train]'"
        ) from error
    wanted = table_names() if tables is None else tuple(tables)
    unknown = sorted(set(wanted) - set(table_names()))
    if unknown:
        raise StoreError(
            f"got unknown tables {', '.join(unknown)}; expected some of {', '.join(table_names())}"
        )
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with translated(store.engine.url), store.engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ")
            return {
                name: _write_table(connection, Base.metadata.tables[name], target)
                for name in wanted
            }
    except OSError as error:
        raise StoreError(
            f"cannot export to {target} ({error.strerror}); expected a folder that can be written"
        ) from error


def _write_table(connection: sa.Connection, table: sa.Table, folder: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            pa.field(column.name, _arrow_type(column.type), nullable=bool(column.nullable))
            for column in table.columns
        ]
    )
    encoders = [_as_text if isinstance(column.type, sa.JSON) else None for column in table.columns]
    count = 0
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{table.name}.") as temporary:
        aside = Path(temporary) / "table.parquet"
        with pq.ParquetWriter(aside, schema, compression="zstd") as writer:
            rows = connection.execution_options(yield_per=_ROWS_A_GROUP).execute(
                sa.select(table).order_by(*table.primary_key.columns)
            )
            for group in rows.partitions(_ROWS_A_GROUP):
                columns = list(zip(*group, strict=True))
                arrays = [
                    pa.array(
                        values if encode is None else [encode(value) for value in values],
                        type=field.type,
                    )
                    for values, encode, field in zip(columns, encoders, schema, strict=True)
                ]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
                count += len(group)
        aside.replace(folder / f"{table.name}.parquet")
    return count


def _as_text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, sort_keys=True)


def _arrow_type(kind: sa.types.TypeEngine[Any]) -> Any:
    import pyarrow as pa

    choices: tuple[tuple[type, Any], ...] = (
        (UInt64, pa.uint64()),
        (UtcDateTime, pa.timestamp("us", tz="UTC")),
        (sa.JSON, pa.string()),
        (sa.Boolean, pa.bool_()),
        (sa.BigInteger, pa.int64()),
        (sa.Integer, pa.int32()),
        (sa.Double, pa.float64()),
        (sa.String, pa.string()),
        (StrEnumType, pa.string()),
    )
    for sql_type, arrow_type in choices:
        if isinstance(kind, sql_type):
            return arrow_type
    raise StoreError(f"got a column of type {kind!r}; expected a type that the export supports")
