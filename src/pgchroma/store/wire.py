"""A statement to PostgreSQL and its rows back, with as little as possible in between.

psycopg's cursors do much that a query of a fraction of a millisecond does not need: measured, 55 microseconds of this process's time a
statement against 23. Here one goes through libpq's pipeline mode, prepared in the same journey from its second use on.
"""

import asyncio
import contextlib
import re
import struct
from collections import OrderedDict
from collections.abc import Generator, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import AsyncConnection, AsyncCursor, errors, sql
from psycopg._preparing import PrepareManager
from psycopg.adapt import Buffer, Dumper, PyFormat, Transformer
from psycopg.pq import ConnStatus, ExecStatus, Format, PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

Row: TypeAlias = tuple[Any, ...]
_Key: TypeAlias = tuple[bytes, tuple[int, ...]]

# Statements that a connection keeps prepared, at most; each holds a plan in the memory of PostgreSQL's process.
_KEPT = 100
# Bytes of a statement's text above which nothing of it is kept, neither here nor in PostgreSQL.
_LONGEST_KEPT = 16_384
# How long PostgreSQL is given to end a statement that nobody waits for any more.
_CANCEL_SECONDS = 5.0
_PLACEHOLDER = re.compile(rb"%(?:\((\w+)\)s|%)")
# After a query whose rows were streamed libpq goes on handing rows out in portions, in pipeline mode.
_ROWS = (ExecStatus.TUPLES_OK, ExecStatus.TUPLES_CHUNK)
# Somebody else dropped what was prepared, or changed the tables under it.
_OUTDATED = (errors.InvalidSqlStatementName, errors.FeatureNotSupported)


_INT8 = psycopg.adapters.types["int8"]
# Of an array's binary format: dimensions, whether there are nulls, the type, how many numbers, lower bound; then each after its size.
_HEAD = struct.Struct("!iiIii").pack
_EMPTY = struct.pack("!iiI", 0, 0, _INT8.oid)
_DIMENSION = struct.Struct("!HH").pack
_SIZED = np.dtype([("size", ">i4"), ("value", ">i8")])


class Numbers:
    """Numbers that PostgreSQL takes as bigint[]."""

    __slots__ = ("values",)

    def __init__(self, values: NDArray[np.int64]) -> None:
        self.values = values


class NumbersDumper(Dumper):
    """Writes them in the array's binary format; psycopg's own takes each by itself."""

    format = Format.BINARY
    oid = _INT8.array_oid

    def dump(self, obj: Numbers) -> Buffer:
        """Return the array."""
        count = len(obj.values)
        if not count:
            return _EMPTY
        fields = np.empty(count, _SIZED)
        fields["size"], fields["value"] = 8, obj.values
        return _HEAD(1, 0, _INT8.oid, count, 1) + fields.tobytes()


class VectorDumper(Dumper):
    """Writes a vector in pgvector's binary format, from an array and without an object of pgvector's in between."""

    format = Format.BINARY

    def dump(self, obj: NDArray[Any]) -> Buffer:
        """Return the dimension, two bytes that mean nothing yet, and the coordinates."""
        if obj.ndim != 1:
            raise psycopg.DataError(f"a vector has one axis, not {obj.ndim}")
        return _DIMENSION(len(obj), 0) + obj.astype(">f4").tobytes()


def register(connection: AsyncConnection[Any], vector: int) -> None:
    """Have a connection use the dumpers above; `vector` is the oid of pgvector's type."""
    connection.adapters.register_dumper(Numbers, NumbersDumper)
    connection.adapters.register_dumper(np.ndarray, type("", (VectorDumper,), {"oid": vector}))


class OwnStatements(PrepareManager):
    """Deallocates what psycopg prepared, one by one.

    After a ROLLBACK, DROP or ALTER psycopg would deallocate everything, what `fetch` has prepared included.
    """

    def clear(self) -> bool:
        """Forget everything, and have it deallocated."""
        names = list(self._names.values())
        self._counts.clear()
        self._names.clear()
        self._to_flush.extend(names)
        return bool(names)


class Prepared:
    """Which statements a connection has prepared; those used last are kept."""

    def __init__(self) -> None:
        # The name is empty until the second use.
        self._names: OrderedDict[_Key, bytes] = OrderedDict()
        self._number = 0

    def use(self, key: _Key) -> tuple[bytes, bool, bytes]:
        """Return (name, or nothing for a first use; whether it is to be prepared; name to forget, or nothing)."""
        known = self._names.get(key)
        if known is None:
            self._names[key] = b""
            forgotten = self._names.popitem(last=False)[1] if len(self._names) > _KEPT else b""
            return b"", False, forgotten
        self._names.move_to_end(key)
        if known:
            return known, False, b""
        self._number += 1
        self._names[key] = name = b"pgchroma_%d" % self._number
        return name, True, b""

    def drop(self, key: _Key) -> None:
        """Forget one, because it is not known whether it was prepared."""
        self._names.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._names.clear()


def is_lasting(query: bytes) -> bool:
    """Whether a query is short enough to be kept: of long ones, as filters of many conditions make them, hardly one is like another."""
    return len(query) <= _LONGEST_KEPT


async def execute(
    connection: AsyncConnection[Any], query: sql.Composed, parameters: Mapping[str, Any]
) -> AsyncCursor[Any]:
    """Run one query by a cursor; of one that is not lasting psycopg keeps nothing either."""
    text = query.as_bytes(connection)
    return await connection.execute(text, parameters, prepare=None if is_lasting(text) else False)


def _numbered(query: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return a query with `$1` and so on in the place of `%(name)s`, and the names in that order."""
    return _kept_numbered(query) if is_lasting(query) else _number(query)


def _number(query: bytes) -> tuple[bytes, tuple[str, ...]]:
    names: dict[str, int] = {}

    def number(match: re.Match[bytes]) -> bytes:
        if match.group(1) is None:
            return b"%"
        return b"$%d" % names.setdefault(match.group(1).decode(), len(names) + 1)

    return _PLACEHOLDER.sub(number, query), tuple(names)


_kept_numbered = lru_cache(maxsize=1024)(_number)


async def fetch(
    connection: AsyncConnection[Any],
    prepared: Prepared,
    query: bytes,
    parameters: Mapping[str, Any],
    *,
    prepare: bool,
) -> list[Row]:
    """Run a query with placeholders of the form `%(name)s` and return its rows, loaded from PostgreSQL's binary formats.

    Args:
        connection: in autocommit mode, or in a transaction.
        prepare: whether to keep its plan from the second use on; not where another is better for other values.

    Raises:
        psycopg.Error: of the kind that PostgreSQL's SQLSTATE stands for.
    """
    try:
        return await _fetch(connection, prepared, query, parameters, prepare=prepare)
    except _OUTDATED:
        # Somebody deallocated it, or changed what it stands for. Nothing was run; outside of a transaction, which the error
        # has ended, the query can be sent anew.
        if connection.pgconn.transaction_status != TransactionStatus.IDLE:
            raise
        return await _fetch(connection, prepared, query, parameters, prepare=prepare)


async def _fetch(
    connection: AsyncConnection[Any],
    prepared: Prepared,
    query: bytes,
    parameters: Mapping[str, Any],
    *,
    prepare: bool,
) -> list[Row]:
    text, names = _numbered(query)
    pgconn = connection.pgconn
    transformer = Transformer.from_context(connection)
    values = transformer.dump_sequence([parameters[name] for name in names], [PyFormat.AUTO] * len(names))
    types, formats = tuple(transformer.types or ()), transformer.formats
    key = (text, types)
    name, is_new, forgotten = prepared.use(key) if prepare and is_lasting(text) else (b"", False, b"")
    pgconn.enter_pipeline_mode()
    try:
        if forgotten:
            pgconn.send_query_params(b"DEALLOCATE " + forgotten, None)
        if is_new:
            pgconn.send_prepare(name, text, types)
        if name:
            pgconn.send_query_prepared(name, values, formats, Format.BINARY)
        else:
            pgconn.send_query_params(text, values, types, formats, Format.BINARY)
        pgconn.pipeline_sync()
        await _arrival(connection)
        results = await connection.wait(_answers(pgconn))
        pgconn.exit_pipeline_mode()
        for result in results:
            if result.status not in (ExecStatus.COMMAND_OK, *_ROWS):
                raise errors.error_from_result(result)
    except BaseException as error:
        if is_new:
            prepared.drop(key)
        _leave_pipeline(pgconn)
        if isinstance(error, _OUTDATED):
            prepared.clear()
        raise
    rows: list[Row] = []
    for result in results:
        if result.status in _ROWS:
            transformer.set_pgresult(result)
            rows += transformer.load_rows(0, result.ntuples, tuple)
    return rows


def _leave_pipeline(pgconn: PGconn) -> None:
    """Make the connection usable for others, or close it."""
    if pgconn.status == ConnStatus.OK and pgconn.pipeline_status != PipelineStatus.OFF:
        try:
            pgconn.exit_pipeline_mode()
        except errors.OperationalError:
            # Answers are still to come that nobody waits for.
            pgconn.finish()


async def _arrival(connection: AsyncConnection[Any]) -> None:
    """Wait until the first answer is there, or the connection lost.

    psycopg waits anew for each piece of an answer, by a task of its own, and PostgreSQL sends pieces of 8 KB: here libpq takes them in
    as they come.
    """
    pgconn = connection.pgconn
    if pgconn.flush():
        # A long statement, which goes out while what PostgreSQL says is read.
        return
    loop = asyncio.get_running_loop()
    arrived = loop.create_future()

    def take() -> None:
        try:
            pgconn.consume_input()
            is_under_way = pgconn.is_busy()
        except psycopg.OperationalError:
            # Found again, and told, by who reads the answer.
            is_under_way = False
        if not is_under_way and not arrived.done():
            arrived.set_result(None)

    socket = pgconn.socket
    loop.add_reader(socket, take)
    try:
        await arrived
    except asyncio.CancelledError:
        loop.remove_reader(socket)
        with contextlib.suppress(psycopg.Error):
            await connection.cancel_safe(timeout=_CANCEL_SECONDS)
            await connection.wait(_answers(pgconn), timeout=_CANCEL_SECONDS)
        raise
    finally:
        loop.remove_reader(socket)


def _answers(pgconn: PGconn) -> Generator[Wait, Ready | int, list[PGresult]]:
    """Wait for the answers up to the end of the pipeline; the connection is usable afterwards, whatever they are."""
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()
    results: list[PGresult] = []
    while True:
        while pgconn.is_busy():
            yield Wait.R
            pgconn.consume_input()
        result = pgconn.get_result()
        # Each statement's answers end with nothing.
        if result is None:
            if pgconn.status != ConnStatus.OK:
                raise errors.OperationalError(pgconn.get_error_message())
            continue
        if result.status == ExecStatus.PIPELINE_SYNC:
            return results
        results.append(result)
