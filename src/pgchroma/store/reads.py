"""Counting, getting and querying records."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, LiteralString, cast
from uuid import UUID

import numpy as np
from psycopg import sql

from pgchroma.errors import InvalidArgumentError, InvalidDimensionError
from pgchroma.store import catalog, metadata, segments, tables, text, vectors
from pgchroma.store.connection import Connection, Row
from pgchroma.store.segments import Segment
from pgchroma.store.where import Compiler, has_pattern
from pgchroma.types import Collection, Filter, Float32Matrix, Include, Record, Rows

# pgvector's bounds of hnsw.ef_search; above it a query searches exactly.
MAX_EF_SEARCH = 1_000

Parameters = dict[str, Any]

# pgvector computes in float32 and so has no distance between vectors that are as short as 1e-30, unless they are made longer
# first. It has none to a zero vector, either; Chroma's is 1.
_COSINE: LiteralString = "coalesce(nullif(embedding <=> %(q)s, 'NaN'), nullif(l2_normalize(embedding) <=> l2_normalize(%(q)s), 'NaN'), 1)"
# space -> (operator an index serves, the distance as Chroma defines it)
_OPERATORS: dict[str, tuple[LiteralString, LiteralString]] = {
    "l2": ("<->", "vector_l2_squared_distance(embedding, %(q)s)"),
    "cosine": ("<=>", _COSINE),
    "ip": ("<#>", "1 + (embedding <#> %(q)s)"),
}


@contextlib.asynccontextmanager
async def one_snapshot(connection: Connection, selection: Filter) -> AsyncIterator[None]:
    """Let the statements of the block see the same state of the database, where the filter takes more than one."""
    if not has_pattern(selection.where, selection.where_document):
        yield
        return
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        yield


async def condition(
    connection: Connection, collection: Collection, selection: Filter
) -> tuple[sql.Composed, Parameters, Compiler]:
    """Return the SQL condition of a filter over `record`, its parameters, and the compiler that made it.

    Regular expressions are run here, over all documents, because PostgreSQL's differ; everything else is left to PostgreSQL.
    So that the caller's statement sees the same documents, it takes `one_snapshot` or asks the compiler about what it found.
    """
    compiler = Compiler(collection.schema)
    parts = _compile(compiler, selection)
    if compiler.patterns and collection.table_number is not None:
        hits: dict[str, set[int]] = {pattern: set() for pattern in compiler.patterns}
        query = sql.SQL("SELECT seq, document FROM {} WHERE document IS NOT NULL").format(
            tables.records(collection.table_number)
        )
        async with connection.cursor(binary=True) as cursor:
            async for seq, document in cursor.stream(query, size=500):
                decoded = text.decode(document)
                for pattern, regex in compiler.patterns.items():
                    if regex.matches(decoded):
                        hits[pattern].add(seq)
        compiler = Compiler(collection.schema, hits)
        parts = _compile(compiler, selection)
    return *_with_ids(parts, compiler.parameters, selection), compiler


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
    collection = await catalog.get_collection_by_id(connection, collection_id)
    if collection.table_number is None:
        return 0
    cursor = await connection.execute(
        sql.SQL("SELECT count(*) FROM {}").format(tables.records(collection.table_number))
    )
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


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


def _rows(fetched: Sequence[Row], include: Include, dimension: int) -> Rows:
    """Return the columns of `_columns(include)`; a distance, where there is one, comes after them."""
    columns = iter(list(zip(*fetched, strict=True)) if fetched else [])

    def column() -> Sequence[Any]:
        return next(columns, ())

    def texts(values: Sequence[str | None]) -> list[str | None]:
        return [value and text.decode(value) for value in values]

    rows = Rows(ids=[text.decode(value) for value in column()])
    if include.documents:
        rows.documents = texts(column())
    if include.metadatas:
        rows.metadatas = [
            metadata.to_json(stored and stored.encode(), exact)
            for stored, exact in zip(column(), column(), strict=True)
        ]
    if include.uris:
        rows.uris = texts(column())
    if include.embeddings:
        rows.embeddings = vectors.from_binary(column(), dimension)
    if include.distances:
        rows.distances = np.array(column(), dtype=np.float32)
    return rows


async def _fetch(connection: Connection, query: sql.Composed, parameters: Parameters) -> list[Row]:
    async with connection.cursor(binary=True) as cursor:
        await cursor.execute(query, parameters)
        return await cursor.fetchall()


async def get(connection: Connection, collection_id: UUID, selection: Filter, include: Include) -> Rows:
    """Return the selected records in insertion order."""
    include = Include(include.documents, include.metadatas, include.embeddings, include.uris)
    collection = await catalog.get_collection_by_id(connection, collection_id)
    async with one_snapshot(connection, selection):
        chosen, parameters, _ = await condition(connection, collection, selection)
        if collection.table_number is None or collection.dimension is None:
            return _rows([], include, 1)
        query = sql.SQL(
            "SELECT {} FROM {} AS record {} WHERE {} ORDER BY record.seq LIMIT {} OFFSET {}"
        ).format(
            _columns(include),
            tables.records(collection.table_number),
            _join(collection.table_number) if include.embeddings else sql.SQL(""),
            chosen,
            sql.Placeholder("limit"),
            sql.Placeholder("offset"),
        )
        parameters |= {"limit": selection.limit, "offset": selection.offset}
        fetched = await _fetch(connection, query, parameters)
    return _rows(fetched, include, collection.dimension)


def _join(number: int) -> sql.Composed:
    return sql.SQL("JOIN {} AS vector ON vector.seq = record.vseq").format(tables.embeddings(number))


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
    collection = await catalog.get_collection_by_id(connection, collection_id)
    async with one_snapshot(connection, selection):
        chosen, parameters, _ = await condition(connection, collection, selection)
        number, dimension = collection.table_number, collection.dimension
        if number is None or dimension is None:
            return [_rows([], include, 1) for _ in embeddings]
        if embeddings.shape[1] != dimension:
            raise InvalidDimensionError(
                f"Collection expecting embedding with dimension of {dimension}, got {embeddings.shape[1]}"
            )
        filtered = selection != Filter()
        indexed = [] if filtered else await segments.load(connection, collection_id)
        if indexed:
            await _set_ef_search(connection, collection, n_results)
        answers = []
        for embedding in embeddings:
            # Every record is equally far from a zero vector: no index can help, and none may be asked.
            exact = n_results > MAX_EF_SEARCH or (collection.space == "cosine" and not embedding.any())
            nearest = (
                _exact(collection, chosen) if filtered else _nearest(collection, [] if exact else indexed)
            )
            statement = sql.SQL(
                "SELECT {columns}{distance} FROM ({nearest}) AS near JOIN {records} AS record ON record.seq = near.record_seq "
                "{join} ORDER BY near.distance, record.seq"
            ).format(
                columns=_columns(include),
                distance=sql.SQL(", near.distance" if include.distances else ""),
                nearest=nearest,
                records=tables.records(number),
                join=_join(number) if include.embeddings else sql.SQL(""),
            )
            fetched = await _fetch(connection, statement, {**parameters, "q": embedding, "k": n_results})
            answers.append(_rows(fetched, include, dimension))
    if answers and n_results and not answers[0].ids and selection.ids and selection == Filter(selection.ids):
        # Chroma refuses a query by any unknown id, with a 500. One among others is left out here; but a caller whose ids are all
        # wrong is told so, as Chroma's clients expect, rather than given an empty answer.
        raise InvalidArgumentError(
            "Error finding id: the collection has none of the ids that the query names"
        )
    return answers


def _exact(collection: Collection, chosen: sql.Composed) -> sql.Composed:
    """Return the k nearest of the records that a condition selects, found by comparing with every one of them."""
    number = cast("int", collection.table_number)
    return sql.SQL(
        "SELECT vector.record_seq, {} AS distance FROM {} AS record {} WHERE {} ORDER BY distance, vector.record_seq LIMIT %(k)s"
    ).format(sql.SQL(_OPERATORS[collection.space][1]), tables.records(number), _join(number), chosen)


def _nearest(collection: Collection, indexed: list[Segment]) -> sql.Composed:
    """Return the k nearest over all vectors: the best of each segment's index and of the tail."""
    table = tables.embeddings(cast("int", collection.table_number))
    operator, distance = (sql.SQL(part) for part in _OPERATORS[collection.space])
    watermark = segments.watermark(indexed)
    branches = [
        # The bounds are literals on purpose: only so does the planner see that the partial index applies.
        sql.SQL(
            "(SELECT record_seq, {} AS distance FROM {} WHERE seq > {} AND seq <= {} "
            "ORDER BY embedding {} %(q)s LIMIT %(k)s)"
        ).format(distance, table, sql.Literal(segment.low), sql.Literal(segment.high), operator)
        for segment in indexed
    ]
    if indexed and collection.space == "cosine":
        branches.append(
            sql.SQL(
                "(SELECT record_seq, 1 FROM {} WHERE vector_norm(embedding) = 0 AND seq <= {} ORDER BY seq LIMIT %(k)s)"
            ).format(table, sql.Literal(watermark))
        )
    branches.append(
        sql.SQL(
            "(SELECT record_seq, {} AS distance FROM {} WHERE seq > {} ORDER BY distance, record_seq LIMIT %(k)s)"
        ).format(distance, table, sql.Literal(watermark))
    )
    return sql.SQL(
        "SELECT record_seq, min(distance) AS distance FROM ({}) AS branch GROUP BY record_seq ORDER BY distance, record_seq LIMIT %(k)s"
    ).format(sql.SQL(" UNION ALL ").join(branches))


async def _set_ef_search(connection: Connection, collection: Collection, n_results: int) -> None:
    wanted = min(max(int(collection.configuration["hnsw"]["ef_search"]), n_results, 1), MAX_EF_SEARCH)
    if connection.ef_search != wanted:
        await connection.execute(sql.SQL("SET hnsw.ef_search = {}").format(sql.Literal(wanted)))
        connection.ef_search = wanted


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
        fetched = await _fetch(connection, query, {"after": after_seq, "page": page})
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
