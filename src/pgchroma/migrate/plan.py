"""The plan: what a run would move, and everything found that stands in its way; nothing is written anywhere."""

from collections.abc import Callable
from dataclasses import dataclass

from pgchroma.errors import RefusedError, SourceError
from pgchroma.migrate.model import Json, Problem, Sink, Source, SourceCollection
from pgchroma.types import Collection


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
    def errors(self) -> list[Problem]:
        """The problems that stop a run unless records may be left behind."""
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def records(self) -> int:
        """Records in all collections."""
        return sum(item.collection.count for item in self.collections)

    def as_json(self) -> Json:
        """Return the plan as a JSON object."""
        return {
            "source": self.source,
            "fingerprint": self.fingerprint,
            "records": self.records,
            "bytes": sum(item.size_bytes for item in self.collections),
            "collections": [item.as_json() for item in self.collections],
            "runnable": not self.errors,
        }

    def require_readable(self, *, skip_unreadable: bool) -> None:
        """Raise SourceError when there are records that cannot be moved and the operator has not accepted that."""
        if self.errors and not skip_unreadable:
            listed = "; ".join(
                f"{problem.collection}: {problem.message}"
                + (
                    f" ({problem.count}, e.g. {', '.join(map(repr, problem.ids[:3]))})"
                    if problem.count
                    else ""
                )
                for problem in self.errors
            )
            raise SourceError(
                f"the source cannot be moved whole: {listed}",
                hint="restore the folder from a backup, or run with --skip-unreadable to move the rest and list in the "
                "receipt what was left behind",
            )


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


def _differs(collection: SourceCollection, target: Collection) -> str | None:
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
