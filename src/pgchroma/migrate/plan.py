"""The plan: what a run would move, and everything found that stands in its way; nothing is written anywhere."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pgchroma.errors import RefusedError, SourceError
from pgchroma.migrate.model import Json, Limits, Problem, Sink, Source, SourceCollection
from pgchroma.migrate.policies import DANGERS, Policies

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")
# pgvector's limit for an index over vectors, and over half-precision ones.
_INDEXED_AS_VECTOR, _INDEXED_AT_ALL = 2_000, 4_000

# What a run does in a second on two cores, reading and proving included: records, and bytes on top of that; docs/MIGRATION.md.
_SPEED: Final = {
    "pgchroma-database": (8_000, 60_000_000),
    "chroma-server": (700, 30_000_000),
    "chroma-folder": (700, 30_000_000),
    "exchange-jsonl": (12_000, 80_000_000),
    "exchange-parquet": (12_000, 100_000_000),
}
# Bytes on disk per byte of texts and vectors, and per record; of a vector index, per byte of vectors and per record.
_DISK: Final = {
    "pgchroma-database": (1.15, 180),
    "chroma-server": (2.1, 400),
    "chroma-folder": (2.1, 400),
    "exchange-jsonl": (1.35, 100),
    "exchange-parquet": (1.0, 40),
}
_INDEX_BYTES_PER_RECORD = 350


@dataclass(frozen=True, slots=True)
class PlannedCollection:
    """One collection of a plan."""

    collection: SourceCollection
    size_bytes: int
    problems: tuple[Problem, ...]

    def as_json(self) -> Json:
        """Return the plan of one collection as a JSON object."""
        item = self.collection
        return {
            "collection": item.path,
            "id": str(item.id),
            "records": item.count,
            "bytes": self.size_bytes,
            "dimension": item.dimension,
            "distance": item.space,
            "metadata": item.metadata,
            "problems": [problem.as_json() for problem in self.problems],
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do."""

    source: Json
    fingerprint: str
    collections: tuple[PlannedCollection, ...]

    @property
    def problems(self) -> list[Problem]:
        """Every problem of every collection."""
        return [problem for item in self.collections for problem in item.problems]

    @property
    def records(self) -> int:
        """Records in all collections."""
        return sum(item.collection.count for item in self.collections)

    @property
    def bytes(self) -> int:
        """Bytes of texts and vectors in all collections."""
        return sum(item.size_bytes for item in self.collections)

    def expected(self, kind: str) -> Json:
        """Return about how long a run to a target of this kind takes, and what it needs on disk there."""
        records_per_second, bytes_per_second = _SPEED[kind]
        factor, overhead = _DISK[kind]
        told: Json = {
            "seconds": round(self.records / records_per_second + self.bytes / bytes_per_second, 1),
            "disk_bytes": int(self.bytes * factor + self.records * overhead),
        }
        if kind == "pgchroma-database":
            told["index_disk_bytes"] = sum(
                item.collection.count * (4 * item.collection.dimension + _INDEX_BYTES_PER_RECORD)
                for item in self.collections
                if item.collection.dimension and item.collection.dimension <= _INDEXED_AT_ALL
            )
        return told

    def blocking(self, policies: Policies, limits: Limits) -> list[Problem]:
        """Return the problems that stop a run under these policies."""
        found = [problem for problem in self.problems if _blocks(problem, policies, limits)]
        for item in self.collections:
            found += [
                problem for problem in of_target(item.collection, limits) if problem.severity == "error"
            ]
        return found

    def as_json(self, policies: Policies, limits: Limits, kind: str) -> Json:
        """Return the plan as a JSON object."""
        collections = []
        for item in self.collections:
            told = item.as_json()
            told["problems"] += [problem.as_json() for problem in of_target(item.collection, limits)]
            for problem in told["problems"]:
                if problem["code"] in DANGERS:
                    problem["action"] = policies.action(problem["code"])
            collections.append(told)
        return {
            "source": self.source,
            "fingerprint": self.fingerprint,
            "records": self.records,
            "bytes": self.bytes,
            "expected": {"target": kind, **self.expected(kind)},
            "policies": policies.as_json(),
            "collections": collections,
            "runnable": not self.blocking(policies, limits),
        }

    def require_movable(self, policies: Policies, limits: Limits) -> None:
        """Raise SourceError when there are records or collections that these policies do not let move."""
        blocking = self.blocking(policies, limits)
        if not blocking:
            return
        listed = "; ".join(
            f"{problem.collection}: {problem.message}"
            + (f" ({problem.count}, e.g. {', '.join(map(repr, problem.ids[:3]))})" if problem.count else "")
            for problem in blocking
        )
        choices = [
            f"--policy {code}={action}"
            for code in dict.fromkeys(problem.code for problem in blocking if problem.code in DANGERS)
            for action in DANGERS[code].actions
            if action not in ("fail", "keep")
        ]
        renaming = any(problem.code.startswith("name-") for problem in blocking)
        raise SourceError(
            f"the source cannot be moved whole: {listed}",
            hint="choose what becomes of these: " + ", ".join(choices + ["--rename OLD=NEW"] * renaming)
            if choices or renaming
            else "restore the source from a backup",
        )


def _blocks(problem: Problem, policies: Policies, limits: Limits) -> bool:
    if problem.code == "index-damaged":
        # It stops a run only through the vectors that are lost with it.
        return problem.severity == "error" and policies.action("vector-missing") == "fail"
    if problem.code not in DANGERS:
        return problem.severity == "error"
    if problem.code == "text-not-unicode" and policies.action("record-lost") != "convert":
        # Only records that Chroma lost can have such texts.
        return False
    if problem.code == "vector-missing" and limits.missing_vectors:
        return False
    if problem.code == "vector-not-finite" and not limits.finite_vectors:
        return False
    action = policies.action(problem.code)
    if action == "keep":
        held = {"metadata-number": not limits.plain_metadata, "metadata-key": not limits.plain_metadata}
        return not {**held, "metadata-array": limits.arrays, "metadata-sparse": limits.sparse}.get(
            problem.code, True
        )
    return action == "fail"


def of_target(collection: SourceCollection, limits: Limits) -> list[Problem]:
    """Return what stands in the way of a collection on the target's side."""
    found = []
    name, dimension = collection.name, collection.dimension or 0
    if len(name) > limits.name:
        found.append(
            Problem("error", "name-too-long", collection.path, f"its name has {len(name)} characters, the target takes {limits.name}")
        )  # fmt: skip
    elif limits.name < 2**31 and not _NAME.fullmatch(name):
        found.append(
            Problem("error", "name-not-allowed", collection.path, "its name is not 3 or more of letters, digits, '.', '_' and '-'")
        )  # fmt: skip
    if dimension > limits.vectors:
        found.append(
            Problem("error", "dimension-too-large", collection.path, f"its vectors have {dimension:,} dimensions, the target takes {limits.vectors:,}")
        )  # fmt: skip
    elif limits.vectors == Limits().vectors and dimension > _INDEXED_AS_VECTOR:
        how = (
            "as halfvec only"
            if dimension <= _INDEXED_AT_ALL
            else "not at all, queries compare with every record"
        )
        found.append(
            Problem("notice", "dimension-index", collection.path, f"vectors of {dimension:,} dimensions are indexed {how}")
        )  # fmt: skip
    return found


def make(source: Source, advance: Callable[[int], None] | None = None) -> Plan:
    """Look through the whole source.

    Args:
        advance: called with the number of records that were looked at since the last call.
    """
    planned = []
    for collection in source.collections():
        problems = source.problems(collection)
        planned.append(PlannedCollection(collection, source.size_bytes(collection), tuple(problems)))
        if advance:
            advance(collection.count)
    return Plan(source.description, source.fingerprint, tuple(planned))


def _differs(collection: SourceCollection, target: SourceCollection) -> str | None:
    """Return in what an existing empty target differs from what it should be, or None."""
    if target.space != collection.space:
        return f"its distance is {target.space}, the source's {collection.space}"
    if target.dimension is not None and target.dimension != collection.dimension:
        return f"its dimension is {target.dimension}, the source's {collection.dimension}"
    if (target.metadata or None) != collection.metadata:
        return "its metadata are others than the source's"
    return None


async def require_free_targets(source: Source, sink: Sink) -> None:
    """Raise RefusedError when a collection that a new run would write to exists and is in use or made otherwise."""
    for collection in source.collections():
        existing = await sink.find(collection)
        if existing is None:
            continue
        target, count = existing
        reason = f"it holds {count:,} records" if count else _differs(collection, target)
        if reason:
            raise RefusedError(
                f"collection {collection.path} exists in the target already: {reason}",
                hint="delete or rename it there, or, when an interrupted migration wrote it, "
                "continue that one with `pgchroma migrate resume`",
            )
