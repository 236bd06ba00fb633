"""Limits on what one request may ask for; each error names the limit and the setting that it comes from."""

from collections.abc import Sequence
from typing import Any

from pgchroma.server.http import HttpError, bad_request
from pgchroma.server.settings import ServerSettings, variable_name
from pgchroma.store import text
from pgchroma.types import Float32Matrix

# U+0000 is kept as two characters of three bytes each.
_LONGEST_CHARACTER = 6
_PATTERNS = ("$regex", "$not_regex")


def _over(what: str, value: int, settings: ServerSettings, name: str) -> HttpError:
    return bad_request(f"{what} is {value}, more than {getattr(settings, name)} ({variable_name(name)})")


def check_batch_size(count: int, settings: ServerSettings) -> None:
    """Raise the 413 that clients know when a write has too many records."""
    limit = settings.max_batch_size
    if count > limit:
        raise HttpError(
            413,
            "BatchSizeExceededError",
            f"Batch size {count} exceeds maximum batch size {limit} (PGCHROMA_MAX_BATCH_SIZE)",
        )


def check_documents(documents: Sequence[str | None] | None, settings: ServerSettings) -> None:
    """Raise a 400 when a document is longer, as PostgreSQL keeps it, than may be written."""
    for document in documents or ():
        if document is not None and len(document) * _LONGEST_CHARACTER > settings.max_document_bytes:
            length = len(text.encode_utf8(document))
            if length > settings.max_document_bytes:
                raise _over("the length of a document in bytes", length, settings, "max_document_bytes")


def check_dimension(matrix: Float32Matrix | None, settings: ServerSettings) -> None:
    """Raise a 400 when embeddings, shape (n, dimension), are too long."""
    if matrix is not None and matrix.shape[1] > settings.max_dimension:
        raise _over("the dimension of the embeddings", matrix.shape[1], settings, "max_dimension")


def check_results(wanted: int, settings: ServerSettings, what: str = "n_results") -> None:
    """Raise a 400 when a query or a search asks for too many results."""
    if wanted > settings.max_results:
        raise _over(what, wanted, settings, "max_results")


def check_queries(matrix: Float32Matrix | None, settings: ServerSettings) -> None:
    """Raise a 400 when a query has too many embeddings, shape (n, dimension)."""
    if matrix is not None and len(matrix) > settings.max_queries:
        raise _over("the number of query_embeddings", len(matrix), settings, "max_queries")


def clause(value: object, name: str, settings: ServerSettings) -> dict[str, Any] | None:
    """Return `where` or `where_document` of a body, whose operators the store checks.

    Raises:
        HttpError: 400 when it is no object, or nested too deep, or has too many conditions or too long a regular expression.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise bad_request(f"Invalid {name} clause")
    depth, conditions, longest = _measure(value)
    if depth > settings.max_where_depth:
        raise _over(f"the depth of the {name} clause", depth, settings, "max_where_depth")
    if conditions > settings.max_where_conditions:
        raise _over(
            f"the number of conditions of the {name} clause", conditions, settings, "max_where_conditions"
        )
    if longest > settings.max_regex_length:
        raise _over(
            f"the length of a regular expression of the {name} clause", longest, settings, "max_regex_length"
        )
    return value


def _measure(value: dict[str, Any]) -> tuple[int, int, int]:
    """Return how deep objects are nested, how many innermost ones there are, and how long the longest regular expression is.

    Without recursion, because that is what it guards.
    """
    deepest, conditions, longest = 0, 0, 0
    pending: list[tuple[Any, int]] = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        deepest = max(deepest, depth)
        inner = [
            (child, depth + 1)
            for entry in item.values()
            for child in (entry if isinstance(entry, list) else (entry,))
            if isinstance(child, dict)
        ]
        if inner:
            pending += inner
        else:
            conditions += 1
            for operator in _PATTERNS:
                if isinstance(pattern := item.get(operator), str):
                    longest = max(longest, len(pattern))
    return deepest, conditions, longest
