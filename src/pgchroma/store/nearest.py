"""The statements that find the nearest records, each without its outermost columns: (record_seq, distance), k rows.

Unfiltered, the best of each segment's index and of the tail are compared. With a filter there are three ways: compare every match
exactly; choose among the matches by their sketches and compare those exactly; or walk the vector indexes from near to far and keep
what matches, which pays when most of a large collection does.
"""

from collections.abc import Sequence
from typing import LiteralString

from psycopg import sql

from pgchroma.store import kinds, segments, tables
from pgchroma.store.segments import Segment
from pgchroma.types import Collection

# pgvector computes in float32 and so has no distance between vectors that are as short as 1e-30, unless they are made longer
# first. It has none to a zero vector, either; Chroma's is 1.
_COSINE: LiteralString = "coalesce(nullif(embedding <=> %(q)s, 'NaN'), nullif(l2_normalize(embedding) <=> l2_normalize(%(q)s), 'NaN'), 1)"
# space -> the distance as Chroma defines it
_DISTANCES: dict[str, LiteralString] = {
    "l2": "vector_l2_squared_distance(embedding, %(q)s)",
    "cosine": _COSINE,
    "ip": "1 + (embedding <#> %(q)s)",
}


def _number(collection: Collection) -> int:
    if collection.table_number is None:
        raise ValueError("a collection without tables holds nothing to search")
    return collection.table_number


def distance(collection: Collection) -> sql.SQL:
    """Return the distance between `embedding` and the query, as Chroma defines it."""
    return sql.SQL(_DISTANCES[collection.space])


def exact(collection: Collection, source: sql.Composable, chosen: sql.Composable) -> sql.Composed:
    """Return the k nearest of the records that a condition over `record` selects, found by comparing with every one of them.

    Args:
        source: where the records are selected from, see where.py.
    """
    number = _number(collection)
    return sql.SQL(
        "SELECT vector.record_seq, {} AS distance FROM {} AS record JOIN {} AS vector ON vector.seq = record.vseq WHERE {} "
        "ORDER BY distance, vector.record_seq LIMIT %(k)s"
    ).format(distance(collection), source, tables.embeddings(number), chosen)


def sketched(collection: Collection, source: sql.Composable, chosen: sql.Composable) -> sql.Composed:
    """Return the k nearest of the records that a condition selects, of which only the best by sketch are compared exactly."""
    number = _number(collection)
    # A record without a sketch is always compared.
    return sql.SQL(
        "SELECT record_seq, {} AS distance FROM {} AS vector WHERE vector.seq = ANY(ARRAY("
        "SELECT record.vseq FROM {} AS record WHERE {} ORDER BY coalesce(record.sketch <~> %(q_sketch)s, 0) LIMIT %(compared)s"
        ")) ORDER BY distance, record_seq LIMIT %(k)s"
    ).format(distance(collection), tables.embeddings(number), source, chosen)


def among(collection: Collection, indexed: Sequence[Segment], count: int) -> sql.Composed:
    """Return the `count` nearest of the vectors numbered in `candidates` and of the tail.

    A third column says how many of the candidates there are, the others having been deleted.
    """
    table = tables.embeddings(_number(collection))
    far = distance(collection)
    return sql.SQL(
        "WITH among AS MATERIALIZED (SELECT record_seq, {} AS distance FROM {} WHERE seq = ANY(%(candidates)s)) "
        "SELECT record_seq, distance, (SELECT count(*) FROM among) AS found FROM (SELECT * FROM among "
        "UNION ALL SELECT record_seq, {} FROM {} WHERE seq > {}) AS vector ORDER BY distance, record_seq LIMIT {}"
    ).format(far, table, far, table, sql.Literal(segments.watermark(indexed)), sql.Literal(count))


def matching_among(
    collection: Collection, indexed: Sequence[Segment], chosen: sql.Composable, count: int
) -> sql.Composed:
    """Return the `count` nearest, of those that a condition selects, of the vectors numbered in `candidates` and of the tail.

    A third column says how many of the candidates there are, a fourth how many of them the condition selects.
    """
    number = _number(collection)
    # OFFSET 0 keeps the planner from looking for the matches first.
    matches = sql.SQL("SELECT FROM {} AS record WHERE record.seq = {} AND {} OFFSET 0")
    return sql.SQL(
        "WITH among AS MATERIALIZED (SELECT record_seq, {far} AS distance FROM {vectors} WHERE seq = ANY(%(candidates)s)), "
        "matching AS MATERIALIZED (SELECT among.* FROM among CROSS JOIN LATERAL ({here}) AS matching) "
        "SELECT record_seq, distance, (SELECT count(*) FROM among) AS found, (SELECT count(*) FROM matching) AS matched "
        "FROM (SELECT * FROM matching UNION ALL SELECT record_seq, {far} FROM {vectors} AS vector "
        "CROSS JOIN LATERAL ({there}) AS matching WHERE vector.seq > {watermark}) AS vector "
        "ORDER BY distance, record_seq LIMIT {count}"
    ).format(
        far=distance(collection),
        vectors=tables.embeddings(number),
        here=matches.format(tables.records(number), sql.SQL("among.record_seq"), chosen),
        there=matches.format(tables.records(number), sql.SQL("vector.record_seq"), chosen),
        watermark=sql.Literal(segments.watermark(indexed)),
        count=sql.Literal(count),
    )


def numbers(source: sql.Composable, chosen: sql.Composable) -> sql.Composed:
    """Return the statement for the snapshot and the numbers of the vectors of the records that a condition selects.

    The numbers come as one value, eight bytes each.
    """
    return sql.SQL(
        "SELECT pg_current_snapshot()::text, string_agg(int8send(record.vseq), '') FROM {} AS record WHERE {}"
    ).format(source, chosen)


def matching_these(collection: Collection, chosen: sql.Composable, count: int) -> sql.Composed:
    """Return the `count` nearest of the vectors numbered in `candidates`, of records that a condition still selects.

    None at all unless `snapshot` is empty or the statement's own.
    """
    number = _number(collection)
    return sql.SQL(
        "SELECT vector.record_seq, {} AS distance FROM {} AS vector CROSS JOIN LATERAL (SELECT FROM {} AS record "
        "WHERE record.seq = vector.record_seq AND record.vseq = vector.seq AND {} OFFSET 0) AS matching "
        "WHERE vector.seq = ANY(%(candidates)s) AND %(snapshot)s IN ('', pg_current_snapshot()::text) "
        "ORDER BY distance, vector.record_seq LIMIT {}"
    ).format(
        distance(collection), tables.embeddings(number), tables.records(number), chosen, sql.Literal(count)
    )


def unfiltered(collection: Collection, indexed: Sequence[Segment], count: int) -> sql.Composed:
    """Return the `count` nearest over all vectors: the best of each segment's index and of the tail."""
    return _best(collection, [_of_segment(collection, part, count) for part in indexed], indexed, count)


def _of_segment(collection: Collection, segment: Segment, count: int) -> sql.Composed:
    table = tables.embeddings(_number(collection))
    order = kinds.order(segment.quantisation, collection.space, collection.dimension or 1)
    # Bounds and limits are literals on purpose: only so does the planner see that the partial index applies, and that it pays,
    # also in a plan that is kept.
    near = sql.SQL(
        "SELECT record_seq, embedding FROM {} WHERE seq > {} AND seq <= {} ORDER BY {} LIMIT {}"
    ).format(
        table,
        sql.Literal(segment.low),
        sql.Literal(segment.high),
        order,
        sql.Literal(kinds.candidates(segment.quantisation, count)),
    )
    return sql.SQL("(SELECT record_seq, {} AS distance FROM ({}) AS near)").format(distance(collection), near)


def _best(
    collection: Collection, branches: list[sql.Composed], indexed: Sequence[Segment], count: int
) -> sql.Composed:
    table = tables.embeddings(_number(collection))
    watermark = sql.Literal(segments.watermark(indexed))
    limit = sql.Literal(count)
    if indexed and collection.space == "cosine":
        # pgvector's cosine indexes leave zero vectors out.
        branches.append(
            sql.SQL(
                "(SELECT record_seq, 1 FROM {} WHERE vector_norm(embedding) = 0 AND seq <= {} ORDER BY seq LIMIT {})"
            ).format(table, watermark, limit)
        )
    branches.append(
        sql.SQL(
            "(SELECT record_seq, {} AS distance FROM {} WHERE seq > {} ORDER BY distance, record_seq LIMIT {})"
        ).format(distance(collection), table, watermark, limit)
    )
    return sql.SQL(
        "SELECT record_seq, min(distance) AS distance FROM ({}) AS branch GROUP BY record_seq ORDER BY distance, record_seq LIMIT {}"
    ).format(sql.SQL(" UNION ALL ").join(branches), limit)


def walking(
    collection: Collection,
    indexed: Sequence[Segment],
    chosen: sql.Composable,
    count: int,
    *,
    kept: int,
    looked_at: int,
) -> sql.Composed:
    """Return the nearest of the records that a condition selects, met on a walk through the indexes from near to far.

    Args:
        kept: matches per segment after which its walk ends; more than `count`, because the order is not quite true.
        looked_at: vectors per segment after which it ends in any case.
    """
    number = _number(collection)
    branches = []
    for segment in indexed:
        order = kinds.order(segment.quantisation, collection.space, collection.dimension or 1)
        near = sql.SQL(
            "SELECT record_seq, embedding FROM {} WHERE seq > {} AND seq <= {} ORDER BY {} LIMIT {}"
        ).format(
            tables.embeddings(number),
            sql.Literal(segment.low),
            sql.Literal(segment.high),
            order,
            sql.Literal(looked_at),
        )
        # OFFSET 0 keeps the planner from turning the walk into something else.
        matching = sql.SQL(
            "SELECT FROM {} AS record WHERE record.seq = near.record_seq AND {} OFFSET 0"
        ).format(tables.records(number), chosen)
        branches.append(
            sql.SQL(
                "(SELECT record_seq, {} AS distance FROM ({}) AS near CROSS JOIN LATERAL ({}) AS matching LIMIT {})"
            ).format(distance(collection), near, matching, sql.Literal(kept))
        )
    watermark = sql.Literal(segments.watermark(indexed))
    rest = sql.SQL("vector.seq > {}").format(watermark)
    if collection.space == "cosine":
        rest = sql.SQL("({} OR vector_norm(vector.embedding) = 0)").format(rest)
    branches.append(
        sql.SQL(
            "(SELECT vector.record_seq, {} AS distance FROM {} AS vector JOIN {} AS record ON record.seq = vector.record_seq "
            "WHERE {} AND {} ORDER BY distance, vector.record_seq LIMIT {})"
        ).format(
            distance(collection),
            tables.embeddings(number),
            tables.records(number),
            rest,
            chosen,
            sql.Literal(count),
        )
    )
    return sql.SQL(
        "SELECT record_seq, min(distance) AS distance FROM ({}) AS branch GROUP BY record_seq ORDER BY distance, record_seq LIMIT {}"
    ).format(sql.SQL(" UNION ALL ").join(branches), sql.Literal(count))
