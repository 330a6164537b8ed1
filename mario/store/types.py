"""Column types that behave the same on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator, TypeEngine

_SIGN = 1 << 63
_MODULUS = 1 << 64


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time with a time zone; SQLite has no time zones and stores UTC."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        """Use ``timestamptz`` on PostgreSQL."""
        return dialect.type_descriptor(sa.DateTime(timezone=dialect.name == "postgresql"))

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Convert to UTC; refuse a time without a zone, which is ambiguous."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"got the naive time {value!r}; expected one with a time zone")
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Return the time in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class UInt64(TypeDecorator[int]):
    """An unsigned 64-bit integer (a seed) in a signed 64-bit column, as two's complement.

    Seeds below 2**63 read the same in plain SQL; above, SQL shows ``seed - 2**64``.
    """

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: sa.Dialect) -> int | None:
        """Map [0, 2**64) to the signed range; refuse other values."""
        if value is None:
            return None
        value = int(value)
        if not 0 <= value < _MODULUS:
            raise ValueError(f"got the seed {value}; expected 0 <= seed < 2**64")
        return value - _MODULUS if value >= _SIGN else value

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> int | None:
        """Map back to [0, 2**64)."""
        if value is None:
            return None
        return value + _MODULUS if value < 0 else value


class StrEnumType(TypeDecorator[StrEnum]):
    """A text column that is read as a member of a ``StrEnum``; the tables' constraints check it.

    Args:
        members: the enumeration.
        length: of the column, in characters.
    """

    impl = sa.String
    cache_ok = True

    def __init__(self, members: type[StrEnum], length: int) -> None:
        super().__init__(length)
        self.members = members

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Write the member's text."""
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> StrEnum | None:
        """Read the member."""
        return None if value is None else self.members(value)


def json_type() -> sa.types.TypeEngine[Any]:
    """Return the JSON column type, ``jsonb`` on PostgreSQL; None is stored as SQL NULL."""
    return sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
