"""Which collections are moved, and under which names."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from pgchroma.errors import ConfigurationError
from pgchroma.migrate.model import Json, Problem, Source, SourceCollection
from pgchroma.types import Record

# tenant, database, collection; None for all of them
Scope = tuple[str, str | None, str | None]


def parse_scopes(options: Sequence[str]) -> list[Scope]:
    """Return the scopes of `TENANT[/DATABASE[/COLLECTION]]` options; ConfigurationError for anything else."""
    scopes: list[Scope] = []
    for option in options:
        parts = option.split("/", 2)
        if not all(parts):
            raise ConfigurationError(
                f"--scope {option}: not of the form TENANT[/DATABASE[/COLLECTION]]",
                hint="for example --scope default_tenant/default_database",
            )
        scopes.append((parts[0], parts[1] if len(parts) > 1 else None, parts[2] if len(parts) > 2 else None))
    return scopes


def in_scope(collection: SourceCollection, scopes: Sequence[Scope]) -> bool:
    """Whether a collection is one of those that the operator named; all are, where none was named."""
    return not scopes or any(
        collection.tenant == tenant
        and database in (None, collection.database)
        and name in (None, collection.name)
        for tenant, database, name in scopes
    )


def parse_renames(options: Sequence[str]) -> dict[str, str]:
    """Return {path: new name} of `TENANT/DATABASE/COLLECTION=NEW` options; ConfigurationError for anything else."""
    renames = {}
    for option in options:
        path, _, name = option.rpartition("=")
        if path.count("/") < 2 or not name:
            raise ConfigurationError(
                f"--rename {option}: not of the form TENANT/DATABASE/COLLECTION=NEW",
                hint="for example --rename default_tenant/default_database/old=new",
            )
        renames[path] = name
    return renames


class Selected:
    """A source of which only some collections are seen, or some by another name; see model.Source."""

    def __init__(
        self, source: Source, scopes: Sequence[Scope], renames: Mapping[str, str], *, wanted: bool = True
    ) -> None:
        """See the class.

        Args:
            wanted: the operator named the scopes, so each must be there.

        Raises:
            ConfigurationError: a rename, or a scope that is wanted, is about nothing in the source.
        """
        self._source = source
        self._original: dict[UUID, SourceCollection] = {}
        self._collections: list[SourceCollection] = []
        known = {item.path for item in source.collections()}
        if unknown := sorted(renames.keys() - known):
            raise ConfigurationError(
                f"--rename: the source has no collection {unknown[0]}",
                hint="see `pgchroma migrate plan` for their paths",
            )
        for item in source.collections():
            if in_scope(item, scopes):
                self._original[item.id] = item
                name = renames.get(item.path)
                self._collections.append(replace(item, name=name) if name else item)
        for scope in scopes if wanted else ():
            if not any(in_scope(item, [scope]) for item in source.collections()):
                raise ConfigurationError(
                    f"--scope {'/'.join(filter(None, scope))}: the source has no such collection",
                    hint="see `pgchroma migrate plan` for their paths",
                )

    @classmethod
    def of_run(cls, source: Source, names: Mapping[UUID, str]) -> "Selected":
        """Return the collections that an interrupted run was about, under the names it gave them."""
        self = cls(source, (), {})
        self._collections = [
            replace(item, name=names[item.id]) for item in source.collections() if item.id in names
        ]
        return self

    @property
    def description(self) -> Json:
        """What the source says of itself."""
        return self._source.description

    @property
    def fingerprint(self) -> str:
        """The whole source's fingerprint."""
        return self._source.fingerprint

    @property
    def frozen(self) -> bool:
        """Whether every read shows the same."""
        return self._source.frozen

    def collections(self) -> Sequence[SourceCollection]:
        """Return the chosen collections, under their new names."""
        return self._collections

    def records(self, collection: SourceCollection, after: int = 0) -> Iterator[list[Record]]:
        """Yield pages of records in insertion order."""
        return self._source.records(self._original[collection.id], after)

    def lost(self, collection: SourceCollection) -> Iterator[list[Record]]:
        """Yield the records that the application lost."""
        return self._source.lost(self._original[collection.id])

    @property
    def original(self) -> Source:
        """The source that this shows a part of."""
        return self._source

    def problems(self, collection: SourceCollection) -> list[Problem]:
        """Return what stands in the way, told of the collection's new name."""
        found = self._source.problems(self._original[collection.id])
        return [
            replace(problem, collection=collection.path) if problem.collection else problem
            for problem in found
        ]

    def size_bytes(self, collection: SourceCollection) -> int:
        """Return about how many bytes a collection takes."""
        return self._source.size_bytes(self._original[collection.id])

    def changes(self) -> list[str]:
        """Return what has changed in the source."""
        return self._source.changes()
