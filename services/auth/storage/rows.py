"""What all row modules share."""

from typing import Any

from sqlalchemy import ColumnElement, Select, literal, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth.domain.model import Place


class Rows:
    """Rows reached over one connection, in the transaction that is open on it."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection


def newest_first(
    query: Select[Any], created_at: ColumnElement[Any], key: ColumnElement[Any], *, after: Place | None, limit: int
) -> Select[Any]:
    """A page of a query by time and then id, descending."""
    if after is not None:
        query = query.where(tuple_(created_at, key) < tuple_(literal(after.created_at), literal(after.id)))
    return query.order_by(created_at.desc(), key.desc()).limit(limit)


def oldest_first(
    query: Select[Any], created_at: ColumnElement[Any], key: ColumnElement[Any], *, after: Place | None, limit: int
) -> Select[Any]:
    """A page of a query by time and then id, ascending."""
    if after is not None:
        query = query.where(tuple_(created_at, key) > tuple_(literal(after.created_at), literal(after.id)))
    return query.order_by(created_at, key).limit(limit)
