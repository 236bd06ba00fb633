"""A statement to PostgreSQL and its rows back, with as little as possible in between.

psycopg's cursors do much that a query of a fraction of a millisecond does not need: measured, 55 microseconds of this process's time a
statement against 23. Here one goes through libpq's pipeline mode, prepared in the same journey from its second use on.
"""

import asyncio
import contextlib
import itertools
import re
from collections import OrderedDict
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import psycopg
from psycopg import AsyncConnection, AsyncCursor, abc, errors, sql
from psycopg._preparing import PrepareManager
from psycopg.adapt import PyFormat, Transformer
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
    """Which statements a connection has prepared; those used last are kept.

    And how it reads and writes PostgreSQL's types: to find that out again for every statement takes longer than to do it.
    """

    def __init__(self) -> None:
        self._transformer: abc.Transformer | None = None
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

    def transformer(self, connection: AsyncConnection[Any]) -> abc.Transformer:
        """Return what reads and writes PostgreSQL's types, as the connection knew them at the first call."""
        if self._transformer is None:
            self._transformer = Transformer(connection)
        return self._transformer

    def forget_types(self) -> None:
        """Have what reads and writes types made anew, because the connection knows others now."""
        self._transformer = None

    def drop(self, key: _Key) -> None:
        """Forget one, because it is not known whether it was prepared."""
        self._names.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._names.clear()


def is_alive(pgconn: PGconn) -> bool:
    """Whether PostgreSQL has kept a connection open while it lay idle; looks at the socket and asks PostgreSQL nothing."""
    try:
        # Twice, because the first look may find only the farewell before the end.
        for _ in range(2):
            pgconn.consume_input()
    except psycopg.OperationalError:
        return False
    return True


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
    (rows,) = await fetch_each(connection, prepared, query, (parameters,), prepare=prepare)
    return rows


async def fetch_each(
    connection: AsyncConnection[Any],
    prepared: Prepared,
    query: bytes,
    several: Iterable[Mapping[str, Any]],
    *,
    prepare: bool,
) -> list[list[Row]]:
    """Run a query with each of several parameters in one journey, and return the rows of each; see `fetch`.

    Each is sent as soon as its parameters are there, so that PostgreSQL is at work while the next are made.
    """
    sent: list[Mapping[str, Any]] = []
    rest = iter(several)
    try:
        return await _fetch(connection, prepared, query, rest, sent, prepare=prepare)
    except _OUTDATED:
        # Somebody deallocated it, or changed what it stands for. Nothing was changed; outside of a transaction, which the error
        # has ended, the query can be sent anew.
        if connection.pgconn.transaction_status != TransactionStatus.IDLE:
            raise
        return await _fetch(connection, prepared, query, itertools.chain(sent, rest), [], prepare=prepare)


async def _fetch(
    connection: AsyncConnection[Any],
    prepared: Prepared,
    query: bytes,
    several: Iterable[Mapping[str, Any]],
    sent: list[Mapping[str, Any]],
    *,
    prepare: bool,
) -> list[list[Row]]:
    text, names = _numbered(query)
    pgconn = connection.pgconn
    transformer = prepared.transformer(connection)
    keys = []
    answers: list[list[PGresult]] = []
    pgconn.enter_pipeline_mode()
    try:
        for parameters in several:
            sent.append(parameters)
            values = transformer.dump_sequence(
                [parameters[name] for name in names], [PyFormat.AUTO] * len(names)
            )
            types, formats = tuple(transformer.types or ()), transformer.formats
            key = (text, types)
            name, is_new, forgotten = prepared.use(key) if prepare and is_lasting(text) else (b"", False, b"")
            if forgotten:
                pgconn.send_query_params(b"DEALLOCATE " + forgotten, None)
            if is_new:
                keys.append(key)
                pgconn.send_prepare(name, text, types)
            if name:
                pgconn.send_query_prepared(name, values, formats, Format.BINARY)
            else:
                pgconn.send_query_params(text, values, types, formats, Format.BINARY)
            # Sends what is there, as far as it can be sent at once.
            pgconn.pipeline_sync()
        for _ in sent:
            results: list[PGresult] = []
            answers.append(results)
            if not _take(pgconn, results):
                await _arrival(connection)
                if not _take(pgconn, results):
                    await connection.wait(_answers(pgconn, results))
        pgconn.exit_pipeline_mode()
        for result in itertools.chain.from_iterable(answers):
            if result.status not in (ExecStatus.COMMAND_OK, *_ROWS):
                raise errors.error_from_result(result)
    except BaseException as error:
        for key in keys:
            prepared.drop(key)
        _leave_pipeline(pgconn)
        if isinstance(error, _OUTDATED):
            prepared.clear()
        raise
    found = [_loaded(transformer, results) for results in answers]
    # Else the memory of the answer would be kept until the next one.
    transformer.set_pgresult(None)
    return found


def _loaded(transformer: abc.Transformer, results: Sequence[PGresult]) -> list[Row]:
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
            await connection.wait(_answers(pgconn, []), timeout=_CANCEL_SECONDS)
        raise
    finally:
        loop.remove_reader(socket)


def _answers(pgconn: PGconn, results: list[PGresult]) -> Generator[Wait, Ready | int, None]:
    """Wait for the answers up to the end of the pipeline; the connection is usable afterwards, whatever they are."""
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()
    while not _take(pgconn, results):
        yield Wait.R
        pgconn.consume_input()


def _take(pgconn: PGconn, results: list[PGresult]) -> bool:
    """Take the answers that have arrived, and return whether they are all of the pipeline's."""
    while not pgconn.is_busy():
        result = pgconn.get_result()
        # Each statement's answers end with nothing.
        if result is None:
            if pgconn.status != ConnStatus.OK:
                raise errors.OperationalError(pgconn.get_error_message())
            continue
        if result.status == ExecStatus.PIPELINE_SYNC:
            return True
        results.append(result)
    return False
