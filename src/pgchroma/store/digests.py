"""What a collection holds, as one short text, computed inside PostgreSQL: equal exactly when nothing was lost or changed.

Every row of a table is hashed over all of its columns (PostgreSQL's 64-bit hash of a record), and the hashes are added up in
128 bits: the sum does not depend on where rows lie on disk, and unlike an exclusive-or it does notice a row that is there twice.
A record's hash is a weighted sum of its columns' hashes, so that two rows could exchange a column's values unnoticed in a sum of
them; each is therefore hashed once more before it is added.
Types whose equality is looser than their bits are hashed as the text or bytes they are sent as: jsonb (1 equals 1.0), vectors
(0.0 equals -0.0). It says that a restored copy is what was backed up; it does not withstand someone who searches for a
collision, and is comparable only under one major version of PostgreSQL. See docs/adr/0008-digests-at-a-restore-point.md.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Final, LiteralString
from uuid import UUID

from psycopg import AsyncConnection, sql

from pgchroma.store import tables

# Kinds of a collection's tables, as store/tables.py names them.
_KINDS: Final = {"records": "r", "vectors": "v", "sparse": "s"}
# Only collections with an index of sparse vectors have it.
_OPTIONAL: Final = {"sparse"}
_SENT: Final = {"vector", "halfvec", "sparsevec", "bit", "varbit"}
_AS_THEY_ARE: Final = {"int8", "int4", "int2", "text", "bool", "uuid", "bytea", "timestamptz"}

_COLLECTIONS: Final = (
    "SELECT c.id, d.tenant, d.name, c.name, c.metadata::text, c.metadata_exact, c.configuration::text, c.schema::text, "
    "c.dimension, c.table_number FROM pgchroma.collections c JOIN pgchroma.databases d ON d.id = c.database_id "
    "ORDER BY d.tenant, d.name, c.name"
)
_COLUMNS: Final = (
    "SELECT c.relname, a.attname, t.typname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
    "JOIN pg_type t ON t.oid = a.atttypid WHERE c.relnamespace = %s::regnamespace AND c.relname = ANY(%s) "
    "AND a.attnum > 0 AND NOT a.attisdropped ORDER BY c.relname, a.attnum"
)
# See above for why twice.
_SUM: LiteralString = (
    "coalesce(sum(hash_record_extended(ROW(int8send(hash_record_extended(ROW({columns}), 0))), 0)), 0)"
)
_LISTS: dict[str, tuple[LiteralString, LiteralString]] = {
    "tenant": ("tenants", "name, 0"),
    "database": ("databases", "id, tenant, name"),
    # Not last_used_at, which a server writes when it comes to it.
    "token": (
        "tokens",
        "id, name, digest, tenant, databases::text, scope, created_at, expires_at, revoked_at",
    ),
}
_NAMESPACES = sql.SQL(" UNION ALL ").join(
    sql.SQL("SELECT {}, count(*), {} FROM {}").format(
        sql.Literal(kind),
        sql.SQL(_SUM).format(columns=sql.SQL(columns)),
        sql.Identifier("pgchroma", table),
    )
    for kind, (table, columns) in _LISTS.items()
)


@dataclass(frozen=True, slots=True)
class CollectionDigest:
    """What one collection holds.

    Attributes:
        records: rows of its records table.
        digest: over the three parts below.
        parts: `catalog` (name, metadata, configuration, schema, dimension), `records`, `vectors` and, where the collection
            has an index of them, `sparse`: count and digest of each.
    """

    id: str
    tenant: str
    database: str
    name: str
    records: int
    digest: str
    parts: dict[str, str]

    @property
    def path(self) -> str:
        """`tenant/database/name`."""
        return f"{self.tenant}/{self.database}/{self.name}"


@dataclass(frozen=True, slots=True)
class Digests:
    """What a database holds.

    Attributes:
        postgresql: major version, without which digests cannot be compared.
        namespaces: digests of the lists of tenants, databases and tokens.
        max_seq: last number of the sequence that orders records.
    """

    postgresql: int
    max_seq: int
    namespaces: dict[str, str]
    collections: tuple[CollectionDigest, ...]

    @property
    def records(self) -> int:
        """Records of all collections."""
        return sum(item.records for item in self.collections)

    @property
    def digest(self) -> str:
        """One digest over everything."""
        return _joined({item.id: item.digest for item in self.collections} | self.namespaces)

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {
            "postgresql": self.postgresql,
            "max_seq": self.max_seq,
            "digest": self.digest,
            "records": self.records,
            "namespaces": self.namespaces,
            "collections": [asdict(item) for item in self.collections],
        }


def from_json(data: dict[str, Any]) -> Digests:
    """Return what `as_json` wrote; KeyError, TypeError or ValueError for anything else."""
    found = Digests(
        int(data["postgresql"]),
        int(data["max_seq"]),
        dict(data["namespaces"]),
        tuple(CollectionDigest(**item) for item in data["collections"]),
    )
    if found.digest != data["digest"]:
        raise ValueError("its own digest does not fit its content")
    return found


def _joined(parts: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _hex(total: object) -> str:
    # A sum of 64-bit numbers, negative ones too, as PostgreSQL's numeric.
    return f"{int(str(total)) % 2**128:032x}"


def _value(column: str, kind: str) -> sql.Composed:
    name = sql.Identifier(column)
    if kind in _SENT:
        return sql.SQL("{}({})").format(sql.Identifier(f"{kind}_send"), name)
    return sql.SQL("{}").format(name) if kind in _AS_THEY_ARE else sql.SQL("{}::text").format(name)


async def compute(connection: AsyncConnection[Any]) -> Digests:
    """Return the digests of what the connection's transaction sees; it should be REPEATABLE READ."""
    cursor = await connection.execute(
        "SELECT current_setting('server_version_num')::int / 10000, last_value FROM pgchroma.record_seqs"
    )
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101 - a sequence has one row
    cursor = await connection.execute(_NAMESPACES)
    namespaces = {kind: f"{count}:{_hex(total)}" for kind, count, total in await cursor.fetchall()}
    cursor = await connection.execute(_COLLECTIONS)
    found = []
    for collection in await cursor.fetchall():
        found.append(await _collection(connection, collection))
    return Digests(row[0], row[1], namespaces, tuple(found))


async def _collection(connection: AsyncConnection[Any], row: tuple[Any, ...]) -> CollectionDigest:
    identity: UUID = row[0]
    parts = {"catalog": hashlib.sha256(json.dumps(row[1:], default=str).encode()).hexdigest()[:32]}
    records, number = 0, row[9]
    if number is not None:
        cursor = await connection.execute(
            _COLUMNS, [tables.SCHEMA, [f"{letter}{number}" for letter in _KINDS.values()]]
        )
        columns: dict[str, list[sql.Composed]] = {}
        for table, column, kind in await cursor.fetchall():
            columns.setdefault(table, []).append(_value(column, kind))
        for part, letter in _KINDS.items():
            values = columns.get(f"{letter}{number}")
            if values is None:
                if part not in _OPTIONAL:
                    parts[part] = "missing"
                continue
            cursor = await connection.execute(
                sql.SQL("SELECT count(*), {} FROM {}").format(
                    sql.SQL(_SUM).format(columns=sql.SQL(", ").join(values)),
                    sql.Identifier(tables.SCHEMA, f"{letter}{number}"),
                )
            )
            answer = await cursor.fetchone()
            assert answer is not None  # noqa: S101 - an aggregate has one row
            parts[part] = f"{answer[0]}:{_hex(answer[1])}"
            if part == "records":
                records = answer[0]
    return CollectionDigest(str(identity), row[1], row[2], row[3], records, _joined(parts), parts)


@dataclass(frozen=True, slots=True)
class Difference:
    """How one collection, or the list of tenants, databases or tokens, differs from what was recorded."""

    path: str
    detail: str


def differences(recorded: Digests, found: Digests) -> list[Difference]:
    """Return what of `recorded` is not so in `found`, in words."""
    wanted = {item.id: item for item in recorded.collections}
    there = {item.id: item for item in found.collections}
    told = []
    for ident in sorted(wanted.keys() | there.keys()):
        one, other = wanted.get(ident), there.get(ident)
        if one is None or other is None:
            known = one or other
            assert known is not None  # noqa: S101 - the key is from one of the two
            detail = f"is missing ({known.records:,} records)" if one else "is there but was not recorded"
            told.append(Difference(known.path, detail))
        elif one.digest != other.digest:
            told.append(Difference(one.path, _described(one, other)))
    told.sort(key=lambda item: item.path)
    for kind, digest in recorded.namespaces.items():
        seen = found.namespaces.get(kind, "missing")
        if seen != digest:
            told.append(Difference(f"{kind}s", _part("list", digest, seen)))
    return told


def _described(recorded: CollectionDigest, found: CollectionDigest) -> str:
    parts = []
    for part, digest in recorded.parts.items():
        seen = found.parts.get(part, "missing")
        if seen != digest:
            parts.append(_part(part, digest, seen))
    return "; ".join(parts)


def _part(part: str, recorded: str, found: str) -> str:
    before, _, _ = recorded.rpartition(":")
    after, _, _ = found.rpartition(":")
    if found == "missing":
        return f"{part}: the table is missing"
    if before != after:
        return f"{part}: {int(after):,} rows instead of {int(before):,}"
    return (
        f"{part}: {'content differs' if not before else f'{int(before):,} rows, but their content differs'}"
    )
