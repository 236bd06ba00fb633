"""Bounds of a task's work: collections of other databases do not exist for it, whatever id it names."""

from contextvars import ContextVar

# (tenant, database); None for no bounds, as for the migrator. The server sets it for a request, whose task ends with it.
_bounds: ContextVar[tuple[str, str] | None] = ContextVar("bounds", default=None)


def confine(tenant: str, database: str) -> None:
    """Confine the rest of the current task to one database."""
    _bounds.set((tenant, database))


def current() -> tuple[str, str] | None:
    """Return what the current task is confined to; work that is done for several tasks at once is for those confined alike."""
    return _bounds.get()


def contain(tenant: str, database: str) -> bool:
    """Whether a collection there may be reached by the current task."""
    within = _bounds.get()
    return within is None or within == (tenant, database)
