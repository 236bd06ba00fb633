"""Counting, getting and querying records."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import lru_cache, partial
from typing import Any, LiteralString, cast
from uuid import UUID

import numpy as np
from psycopg import sql

from pgchroma.errors import InvalidArgumentError, InvalidDimensionError
from pgchroma.store import (
    catalog,
    entries,
    metadata,
    search_all,
    search_filtered,
    segments,
    tables,
    text,
    vectors,
)
from pgchroma.store.connection import Connection, Row
from pgchroma.store.entries import GUARD, Entry
from pgchroma.store.patterns import Patterns
from pgchroma.store.search_basis import Wanted
from pgchroma.store.segments import RecordSegment
from pgchroma.store.where import Compiler, has_pattern, in_segments, source
from pgchroma.types import Collection, Filter, Float32Matrix, Include, Record, Rows

Parameters = dict[str, Any]

# Documents that are taken from PostgreSQL's answer, and looked at, at a time.
_PORTION = 500


@contextlib.asynccontextmanager
async def one_snapshot(connection: Connection, selection: Filter) -> AsyncIterator[None]:
    """Let the statements of the block see the same state of the database, where the filter takes more than one."""
    if not has_pattern(selection.where, selection.where_document):
        yield
        return
    try:
        async with connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield
    except BaseException:
        # Whatever was SET in the transaction has been taken back with it.
        connection.settings.clear()
        raise


async def condition(
    connection: Connection, collection: Collection, selection: Filter
) -> tuple[sql.Composed, Parameters, Compiler]:
    """Return the SQL condition of a filter over `record`, its parameters, and the compiler that made it.

    Regular expressions are run here, over all documents, because PostgreSQL's differ; everything else is left to PostgreSQL.
    So that the caller's statement sees the same documents, it takes `one_snapshot` or asks the compiler about what it found.
    """
    chosen, parameters, compiler = await compiled(connection, collection, selection)
    if selection.ids is None and (selection.where is not None or selection.where_document is not None):
        chosen = in_segments(chosen, (await segments.load_both(connection, collection.id))[1])
    return chosen, parameters, compiler


async def compiled(
    connection: Connection, collection: Collection, selection: Filter
) -> tuple[sql.Composed, Parameters, Compiler]:
    """Return what `condition` does, without regard to indexes."""
    patterns = Patterns(connection.regex_seconds)
    compiler = Compiler(collection.schema, patterns)
    parts = await patterns.run(
        lambda: _compile(compiler, selection),
        at_once=not has_pattern(selection.where, selection.where_document),
    )
    if patterns.compiled and collection.table_number is not None:
        # Of no other records than these may the documents decide.
        possible, parameters = _with_ids(parts, compiler.parameters, selection)
        await _match(connection, collection.table_number, possible, parameters, patterns)
        compiler = Compiler(collection.schema, patterns)
        parts = _compile(compiler, selection)
    return *_with_ids(parts, compiler.parameters, selection), compiler


async def _match(
    connection: Connection, number: int, chosen: sql.Composed, parameters: Parameters, patterns: Patterns
) -> None:
    """Run patterns over the documents of the records that a condition over `record` selects, some at a time."""
    query = sql.SQL(
        "SELECT record.seq, record.document FROM {} AS record WHERE record.document IS NOT NULL AND {}"
    ).format(tables.records(number), chosen)
    page: list[tuple[int, str]] = []
    characters, enough = 0, patterns.characters_of_a_turn

    async def match() -> None:
        await patterns.run(partial(patterns.look_at, page), at_once=patterns.is_quick(page))

    async with connection.cursor(binary=True) as cursor:
        rows = cast("AsyncGenerator[tuple[int, str]]", cursor.stream(query, parameters, size=_PORTION))
        # Closed with care, so that the connection is free when a pattern is given up half-way.
        async with contextlib.aclosing(rows):
            async for row in rows:
                page.append(row)
                characters += len(row[1])
                if len(page) == _PORTION or characters > enough:
                    await match()
                    page, characters = [], 0
    await match()


def _source(
    number: int, records: Sequence[RecordSegment], selection: Filter, compiler: Compiler
) -> tuple[sql.Composable, Parameters]:
    """Return where records are selected from: the whole table, unless indexes over metadata or documents may help."""
    if selection.ids is not None or (selection.where is None and selection.where_document is None):
        records = ()
    return source(number, records, compiler)


def _compile(compiler: Compiler, selection: Filter) -> list[sql.Composed]:
    parts = []
    if selection.where is not None:
        parts.append(compiler.where(selection.where))
    if selection.where_document is not None:
        parts.append(compiler.where_document(selection.where_document))
    return parts


def _with_ids(
    parts: list[sql.Composed], parameters: Parameters, selection: Filter
) -> tuple[sql.Composed, Parameters]:
    if selection.ids is not None:
        parameters["ids"] = [text.id_key(record_id)[0] for record_id in selection.ids]
        parts.append(sql.SQL("record.id = ANY({})").format(sql.Placeholder("ids")))
    return sql.SQL(" AND ").join(parts or [sql.SQL("true").format()]), parameters


async def count(connection: Connection, collection_id: UUID) -> int:
    """Return how many records a collection has."""

    async def work(entry: Entry) -> list[int]:
        number = entry.collection.table_number
        if number is None:
            return []
        query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(tables.records(number), sql.SQL(GUARD))
        row = await (await connection.execute(query, entry.parameters)).fetchone()
        return [int(row[0])] if row and row[0] else []

    return sum(await entries.reading(connection, collection_id, work, lambda counted: not counted))


@lru_cache(maxsize=64)
def _columns(include: Include) -> sql.Composed:
    names: list[LiteralString] = ["coalesce(record.id_full, record.id)"]
    if include.documents:
        names.append("record.document")
    if include.metadatas:
        names += ["record.metadata::text", "record.metadata_exact"]
    if include.uris:
        names.append("record.uri")
    if include.embeddings:
        names.append("vector_send(vector.embedding)")
    return sql.SQL(", ").join(map(sql.SQL, names))


def _rows(fetched: Sequence[Row], include: Include) -> Rows:
    """Return the columns of `_columns(include)`; a distance, where there is one, comes after them."""
    columns = iter(list(zip(*fetched, strict=True)) if fetched else [])

    def column() -> Sequence[Any]:
        return next(columns, ())

    def texts(values: Sequence[Any]) -> list[Any]:
        # To call a function for each costs more than to look at all.
        return list(values) if text.are_plain(values) else [value and text.decode(value) for value in values]

    rows = Rows(ids=texts(column()))
    if include.documents:
        rows.documents = texts(column())
    if include.metadatas:
        rows.metadatas = metadata.all_to_json(column(), column())
    if include.uris:
        rows.uris = texts(column())
    if include.embeddings:
        rows.embeddings = vectors.from_binary(column())
    if include.distances:
        rows.distances = np.array(column(), dtype=np.float32)
    return rows


async def fetch(
    connection: Connection, query: sql.Composed | str, parameters: Parameters, *, prepare: bool = True
) -> list[Row]:
    """Run a query and return its rows, read in PostgreSQL's binary formats."""
    text = query.encode() if isinstance(query, str) else query.as_bytes(connection)
    return await connection.fetch(text, parameters, prepare=prepare)


def _depends_on_values(selection: Filter) -> bool:
    """Whether the best plan of a statement is another for other values, so that none should be kept."""
    return selection.where is not None or selection.where_document is not None


async def get(connection: Connection, collection_id: UUID, selection: Filter, include: Include) -> Rows:
    """Return the selected records in insertion order."""
    include = Include(include.documents, include.metadatas, include.embeddings, include.uris)

    async def work(entry: Entry) -> list[Row]:
        async with one_snapshot(connection, selection):
            chosen, parameters, compiler = await compiled(connection, entry.collection, selection)
            number = entry.collection.table_number
            if number is None:
                return []
            found, more = _source(number, entry.records, selection, compiler)
            # Texts of statements are dear to make, and this one is the same for all who give nothing but ids.
            repeated = not _depends_on_values(selection)
            key = ("get", include, selection.ids is None)
            query = entry.statements.get(key) if repeated else None
            if query is None:
                # The page is chosen before its vectors are fetched: those of the records before it are not needed.
                query = (
                    sql.SQL(
                        "SELECT {} FROM (SELECT record.* FROM {} AS record WHERE {} AND {} "
                        "ORDER BY record.seq LIMIT %(limit)s OFFSET %(offset)s) AS record {} ORDER BY record.seq"
                    )
                    .format(
                        _columns(include),
                        found,
                        chosen,
                        sql.SQL(GUARD),
                        _join(number) if include.embeddings else sql.SQL(""),
                    )
                    .as_string(connection)
                )
                if repeated:
                    entry.statements[key] = query
            parameters |= {"limit": selection.limit, "offset": selection.offset, **entry.parameters, **more}
            return await fetch(connection, query, parameters, prepare=repeated)

    fetched = await entries.reading(connection, collection_id, work, lambda rows: not rows)
    return _rows(fetched, include)


@lru_cache(maxsize=256)
def _join(number: int) -> sql.Composed:
    return sql.SQL("JOIN {} AS vector ON vector.seq = record.vseq").format(tables.embeddings(number))


async def moment(connection: Connection) -> str:
    """Return PostgreSQL's snapshot, which every commit changes: it ends a transaction that was under way or a newer one."""
    rows = await connection.fetch(b"SELECT pg_current_snapshot()::text", {})
    return str(rows[0][0])


async def query(
    connection: Connection,
    collection_id: UUID,
    embeddings: Float32Matrix,
    n_results: int,
    selection: Filter,
    include: Include,
) -> list[Rows]:
    """Return, for each of `embeddings` (shape (q, dimension)), its nearest records, nearest first.

    Raises:
        InvalidArgumentError: the selection is by ids alone, and none of them exists.
        InvalidDimensionError: the queries' dimension is not the collection's.
        NotFoundError: the collection does not exist.
    """

    was_written_to = False

    async def work(entry: Entry) -> list[Rows]:
        nonlocal was_written_to
        async with one_snapshot(connection, selection):
            collection = entry.collection
            was_written_to = collection.table_number is not None
            # A wrong filter is an error in an empty collection, too; one that selects everything need not be looked at.
            compiled_filter = (
                None if selection == Filter() else await compiled(connection, collection, selection)
            )
            number, dimension = collection.table_number, collection.dimension
            if number is None or dimension is None:
                return [_rows([], include) for _ in embeddings]
            if embeddings.shape[1] != dimension:
                raise InvalidDimensionError(
                    f"Collection expecting embedding with dimension of {dimension}, got {embeddings.shape[1]}"
                )
            matching = None
            if compiled_filter is not None:
                chosen, parameters, compiler = compiled_filter
                found, more = _source(number, entry.records, selection, compiler)
                matching = search_filtered.Matching(found, chosen, {**parameters, **more})
            wanted = Wanted(_columns(include), _join(number) if include.embeddings else None, include)
            if matching is None:
                every = await search_all.unfiltered(connection, entry, embeddings, n_results, wanted)
            else:
                every = [
                    await search_filtered.filtered(connection, entry, embedding, n_results, matching, wanted)
                    for embedding in embeddings
                ]
            return [_rows(fetched, include) for fetched in every]

    answers = await entries.reading(
        connection, collection_id, work, lambda found: not all(rows.ids for rows in found)
    )
    by_ids_alone = bool(selection.ids) and selection == Filter(selection.ids)
    if was_written_to and by_ids_alone and n_results and answers and not answers[0].ids:
        # Chroma refuses a query by any unknown id, with a 500. One among others is left out here; but a caller whose ids are all
        # wrong is told so, as Chroma's clients expect, rather than given an empty answer.
        raise InvalidArgumentError(
            "Error finding id: the collection has none of the ids that the query names"
        )
    return answers


async def iter_records(
    connection: Connection, collection: Collection, after_seq: int, page: int
) -> AsyncIterator[list[Record]]:
    """Yield whole records in insertion order, `page` at a time, starting after `after_seq`.

    Each page shows the state of its moment: what is written meanwhile may be in it or not.
    """
    # The caller's copy may be older than the first write.
    collection = await catalog.get_collection_by_id(connection, collection.id)
    if collection.table_number is None or collection.dimension is None:
        return
    include = Include(documents=True, metadatas=True, embeddings=True, uris=True)
    query = sql.SQL(
        "SELECT {}, record.seq FROM {} AS record {} WHERE record.seq > %(after)s ORDER BY record.seq LIMIT %(page)s"
    ).format(_columns(include), tables.records(collection.table_number), _join(collection.table_number))
    while True:
        fetched = await fetch(connection, query, {"after": after_seq, "page": page})
        if not fetched:
            return
        records = [
            Record(
                seq=seq,
                id=text.decode(record_id),
                embedding=np.frombuffer(embedding, ">f4", offset=4).astype(np.float32),
                document=document and text.decode(document),
                metadata=metadata.decode(stored, exact),
                uri=uri and text.decode(uri),
            )
            for record_id, document, stored, exact, uri, embedding, seq in fetched
        ]
        yield records
        after_seq = records[-1].seq
