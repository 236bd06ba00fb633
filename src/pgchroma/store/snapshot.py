"""One moment of a database, read as often as needed: for moving its collections elsewhere and for comparing them.

A synchronous connection of its own, in one REPEATABLE READ transaction, so that copy and proof see the same records whatever
applications write meanwhile. Such a transaction keeps vacuum from removing dead rows; it ends with the object.
"""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import psycopg
from psycopg import sql

from pgchroma.errors import DatabaseNotReadyError
from pgchroma.store import metadata, tables, text
from pgchroma.store.connection import StoreSettings, conninfo
from pgchroma.store.failures import unprepared, unreachable
from pgchroma.types import Collection, Record

PAGE_RECORDS = 2_000
PAGE_BYTES = 16 * 1024 * 1024

_COLLECTIONS = (
    "SELECT c.id, c.name, d.tenant, d.name, c.metadata::text, c.metadata_exact, c.configuration::text, c.schema::text, "
    "c.dimension, c.table_number FROM pgchroma.collections c JOIN pgchroma.databases d ON d.id = c.database_id "
    'ORDER BY d.tenant, d.name COLLATE "C", c.name'
)


class DatabaseSnapshot:
    """A database as it was at the first statement; a context manager.

    Args:
        moment: what another one's `moment` returned, which must not be closed yet: this one shows the same.

    Raises:
        DatabaseUnreachableError: no connection, or it was lost.
        DatabaseNotReadyError: the schema is not there or may not be read.
    """

    def __init__(self, database_url: str, settings: StoreSettings, moment: str | None = None) -> None:
        try:
            self._connection = psycopg.connect(conninfo(database_url, settings))
        except psycopg.OperationalError as error:
            raise unreachable(error) from error
        self._connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        self._connection.read_only = True
        if moment is not None:
            self._rows(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(moment)))
        # Fresh tables have no statistics; the pages are small ranges of the key and always best read by it.
        for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin"):
            self._rows(sql.SQL("SET {} = off").format(sql.Identifier(setting)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()

    def _rows(
        self, query: sql.SQL | sql.Composed, parameters: dict[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        try:
            with self._connection.cursor(binary=True) as cursor:
                cursor.execute(query, parameters)
                return cursor.fetchall() if cursor.description else []
        except (psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege) as error:
            raise unprepared(error) from error
        except psycopg.OperationalError as error:
            raise unreachable(error) from error

    def moment(self) -> str:
        """Return what lets another connection, of any process, see the same as long as this is open."""
        ((exported,),) = self._rows(sql.SQL("SELECT pg_export_snapshot()"))
        return str(exported)

    def horizon(self) -> dict[str, Any]:
        """Return what tells later which records are newer than this moment: transaction, highest number, cluster."""
        ((xid, seq, system, database),) = self._rows(
            sql.SQL(
                "SELECT pg_snapshot_xmin(pg_current_snapshot())::text, coalesce(pg_sequence_last_value('pgchroma.record_seqs'), 0), "
                "(SELECT system_identifier::text FROM pg_control_system()), (SELECT oid::bigint FROM pg_database WHERE datname = current_database())"
            )
        )
        return {"xid": xid, "record_seq": seq, "system": system, "database": database}

    def collections(self) -> list[Collection]:
        """Return every collection, ordered by tenant, database and name."""
        rows = self._rows(sql.SQL(_COLLECTIONS))
        return [
            Collection(
                id=row[0],
                name=row[1],
                tenant=row[2],
                database=row[3],
                metadata=metadata.decode(row[4], row[5]),
                configuration=metadata.decode(row[6], None) or {},
                schema=metadata.decode(row[7], None) or {},
                dimension=row[8],
                table_number=row[9],
            )
            for row in rows
        ]

    def state(self, collection: Collection) -> dict[str, int]:
        """Return what changes with a collection's records: their number, the highest numbers and the newest row version."""
        if collection.table_number is None:
            return {"records": 0, "last_record": 0, "last_vector": 0}
        ((count, last, vector),) = self._rows(
            sql.SQL("SELECT count(*), coalesce(max(seq), 0), coalesce(max(vseq), 0) FROM {}").format(
                tables.records(collection.table_number)
            )
        )
        return {"records": count, "last_record": last, "last_vector": vector}

    def size_bytes(self, collection: Collection) -> int:
        """Return the bytes of a collection's tables without their indexes."""
        if collection.table_number is None:
            return 0
        names = [f"{tables.SCHEMA}.{kind}{collection.table_number}" for kind in "rv"]
        ((size,),) = self._rows(
            sql.SQL("SELECT pg_table_size({}) + pg_table_size({})").format(*map(sql.Literal, names))
        )
        return int(size)

    def changed_seqs(self, collection: Collection, xid: str) -> list[int]:
        """Return `Record.seq` of the records that were written by transactions from `xid` (a 64-bit number) on, in order.

        Raises:
            DatabaseNotReadyError: so many transactions ago that PostgreSQL cannot tell any more.
        """
        ((distance,),) = self._rows(
            sql.SQL("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint - {}::bigint").format(
                sql.Literal(xid)
            )
        )
        if not 0 <= distance < 2**31:
            raise DatabaseNotReadyError(
                f"the receipt is {distance:,} transactions old; PostgreSQL tells rows apart by age up to 2^31",
                hint="move everything instead of what is newer than a receipt",
            )
        if collection.table_number is None:
            return []
        rows = self._rows(
            sql.SQL(
                # age() counts backwards from the present, so what is newer is younger.
                "SELECT seq FROM {} WHERE age(xmin) <= age(({}::numeric % 4294967296)::text::xid) ORDER BY seq"
            ).format(tables.records(collection.table_number), sql.Literal(xid))
        )
        return [seq for (seq,) in rows]

    def ids(self, collection: Collection) -> Iterator[list[str]]:
        """Yield all ids in insertion order, some thousands at a time."""
        if collection.table_number is None:
            return
        after = 0
        while rows := self._rows(
            sql.SQL(
                "SELECT seq, coalesce(id_full, id) FROM {} WHERE seq > {} ORDER BY seq LIMIT 10000"
            ).format(tables.records(collection.table_number), sql.Literal(after))
        ):
            yield [text.decode(name) for _, name in rows]
            after = rows[-1][0]

    def records_of(self, collection: Collection, seqs: Sequence[int]) -> Iterator[list[Record]]:
        """Yield the records of given numbers, in insertion order, in pages like those of `records`."""
        if collection.table_number is None:
            return
        query = sql.SQL("{} WHERE r.seq = ANY(%(seqs)s::bigint[]) ORDER BY r.seq").format(_select(collection))
        sizes = _sizes(collection, sql.SQL("seq = ANY(%(seqs)s::bigint[])"))
        for start in range(0, len(seqs), PAGE_RECORDS):
            rows = self._rows(sizes, {"seqs": list(seqs[start : start + PAGE_RECORDS])})
            for some in _bounded(rows, collection):
                yield _records(self._rows(query, {"seqs": some}))

    def records(self, collection: Collection, after: int = 0) -> Iterator[list[Record]]:
        """Yield whole records in insertion order, in pages of at most 2,000 records and about 16 MiB."""
        if collection.table_number is None:
            return
        page = sql.SQL("{} WHERE r.seq > %(after)s AND r.seq <= %(until)s ORDER BY r.seq").format(
            _select(collection)
        )
        sizes = _sizes(collection, sql.SQL("seq > %(after)s"))
        while ahead := self._rows(sizes, {"after": after}):
            until = next(_bounded(ahead, collection))[-1]
            yield _records(self._rows(page, {"after": after, "until": until}))
            after = until


def _sizes(collection: Collection, which: sql.SQL) -> sql.Composed:
    """Return the statement for the number and the bytes of the texts of the next records; only a packed jsonb is unpacked for it."""
    assert collection.table_number is not None  # noqa: S101 - callers checked it
    return sql.SQL(
        "SELECT seq, coalesce(octet_length(document), 0) + coalesce(octet_length(uri), 0) + coalesce(octet_length(metadata_exact), 0) "
        "+ coalesce(CASE WHEN pg_column_compression(metadata) IS NULL THEN pg_column_size(metadata) "
        "ELSE octet_length(metadata::text) END, 0) FROM {} WHERE {} ORDER BY seq LIMIT {}"
    ).format(tables.records(collection.table_number), which, sql.Literal(PAGE_RECORDS))


def _bounded(sizes: Sequence[tuple[Any, ...]], collection: Collection) -> Iterator[list[int]]:
    """Cut (number, bytes) of records into the numbers of pages of about 16 MiB."""
    page: list[int] = []
    size = 0
    for seq, length in sizes:
        needed = length + 4 * (collection.dimension or 0)
        if page and size + needed > PAGE_BYTES:
            yield page
            page, size = [], 0
        page.append(seq)
        size += needed
    if page:
        yield page


def _select(collection: Collection) -> sql.Composed:
    assert collection.table_number is not None  # noqa: S101 - callers checked it
    return sql.SQL(
        "SELECT r.seq, coalesce(r.id_full, r.id), r.document, r.metadata::text, r.metadata_exact, r.uri, vector_send(v.embedding) "
        "FROM {} AS r JOIN {} AS v ON v.seq = r.vseq"
    ).format(tables.records(collection.table_number), tables.embeddings(collection.table_number))


def _records(rows: list[tuple[Any, ...]]) -> list[Record]:
    columns = list(zip(*rows, strict=True))
    # All vectors of a collection are of one length, so one conversion does for the page.
    width = len(columns[6][0])
    vectors = np.frombuffer(b"".join(columns[6]), dtype=np.uint8).reshape(len(rows), width)[:, 4:]
    matrix = np.ascontiguousarray(vectors).view(">f4").astype(np.float32)
    decoded = metadata.decode_all(columns[3], columns[4])
    return [
        Record(
            seq,
            text.decode(name),
            vector,
            document and text.decode(document),
            found,
            uri and text.decode(uri),
        )
        for seq, name, document, found, uri, vector in zip(
            *columns[:3], decoded, columns[5], matrix, strict=True
        )
    ]
