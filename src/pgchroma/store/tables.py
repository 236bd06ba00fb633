"""The two tables of a collection and the text of the statements that know them.

`pgchroma_data.r<n>` holds records: `seq` is the insertion order and never changes, `vseq` names the record's row in
`pgchroma_data.v<n>`, which holds vectors. An update that leaves the embedding alone so never touches a vector index; one that
changes it writes a new vector with a new, higher number, which puts it into the tail.

Every statement and transaction takes the records first, then the vectors: whoever deletes a collection locks them in that order.
"""

from collections.abc import Sequence

from psycopg import sql

from pgchroma.store import sketches, vectors

SCHEMA = "pgchroma_data"
# The application_name by which the indexer's session is known.
INDEXER = "pgchroma-indexer"


def records(number: int) -> sql.Identifier:
    """Return the name of the records table."""
    return sql.Identifier(SCHEMA, f"r{number}")


def embeddings(number: int) -> sql.Identifier:
    """Return the name of the vectors table."""
    return sql.Identifier(SCHEMA, f"v{number}")


def create(number: int, dimension: int, space: str) -> list[sql.Composed]:
    """Return the statements that create a collection's tables."""
    statements = [
        sql.SQL(
            'CREATE TABLE {} (seq bigint PRIMARY KEY, vseq bigint NOT NULL, id text COLLATE "C" NOT NULL, id_full text, '
            "document text, metadata jsonb, metadata_exact text, uri text{})"
        ).format(
            records(number),
            sql.SQL(", sketch {}").format(sketches.column(dimension))
            if sketches.levels(dimension)
            else sql.SQL(""),
        ),
        sql.SQL("CREATE UNIQUE INDEX {} ON {} (id)").format(sql.Identifier(f"r{number}_id"), records(number)),
        sql.SQL(
            "CREATE TABLE {} (seq bigint PRIMARY KEY, record_seq bigint NOT NULL, embedding vector({}) NOT NULL)"
        ).format(embeddings(number), sql.Literal(dimension)),
    ]
    if dimension <= vectors.MAX_INLINE_DIMENSION:
        statements.append(
            sql.SQL("ALTER TABLE {} ALTER COLUMN embedding SET STORAGE PLAIN").format(embeddings(number))
        )
    if sketches.levels(dimension):
        # Noise, which compression would only try in vain.
        statements.append(
            sql.SQL("ALTER TABLE {} ALTER COLUMN sketch SET STORAGE PLAIN").format(records(number))
        )
    if space == "cosine":
        # pgvector's cosine indexes leave zero vectors out; this one finds them.
        statements.append(
            sql.SQL("CREATE INDEX {} ON {} (seq) WHERE vector_norm(embedding) = 0").format(
                sql.Identifier(f"v{number}_zero"), embeddings(number)
            )
        )
    return statements


def cancel_builds(numbers: Sequence[int]) -> sql.Composed:
    """Return the statement that interrupts the indexer where it builds an index of these tables."""
    return sql.SQL(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_progress_create_index JOIN pg_stat_activity USING (pid) "
        "WHERE relid IN (SELECT to_regclass({} || letter || number) FROM unnest(ARRAY['r', 'v']) AS letter, unnest({}::bigint[]) AS number) "
        "AND usename = current_user AND application_name = {}"
    ).format(sql.Literal(f"{SCHEMA}."), sql.Literal(list(numbers)), sql.Literal(INDEXER))


def existing(numbers: Sequence[int], prefixes: Sequence[str]) -> sql.Composed:
    """Return the statement for the names of the tables of collections that there are, of those that begin with these letters."""
    return sql.SQL(
        "SELECT relname FROM pg_class WHERE relnamespace = {}::regnamespace AND relname = ANY({}) ORDER BY relname"
    ).format(
        sql.Literal(SCHEMA), sql.Literal([f"{prefix}{number}" for prefix in prefixes for number in numbers])
    )


def lock(names: Sequence[str]) -> sql.Composed:
    """Return the statement that locks tables against everybody else."""
    return sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(
        sql.SQL(", ").join(sql.Identifier(SCHEMA, name) for name in names)
    )


def drop(number: int) -> sql.Composed:
    """Return the statement that drops a collection's tables."""
    # The third one is that of sparse vectors, store/sparse.py, which few collections have.
    return sql.SQL("DROP TABLE IF EXISTS {}, {}, {}").format(
        records(number), embeddings(number), sql.Identifier(SCHEMA, f"s{number}")
    )
