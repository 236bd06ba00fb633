"""Answers as JSON. Metadata passes through as the text it was read as; embeddings and distances are written as float32."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from pgchroma.ranking import Search
from pgchroma.server import plain
from pgchroma.store.search import SearchRows
from pgchroma.types import Collection, Include, Rows

# Written in less than a millisecond. Larger pieces take up to half as long again: each is written to memory that the kernel has to clear.
_FLOATS_OF_A_TURN = 16 * 1024


def collection(found: Collection) -> dict[str, Any]:
    """Return a collection as clients read it."""
    return {
        "id": str(found.id),
        "name": found.name,
        "configuration_json": found.configuration,
        "schema": found.schema,
        "metadata": found.metadata,
        "dimension": found.dimension,
        "tenant": found.tenant,
        "database": found.database,
        "log_position": found.log_position,
        "version": found.version,
    }


def include_of(names: Sequence[str]) -> Include:
    """Return the columns that a request's `include` asks for."""
    return Include(**dict.fromkeys(names, True))


def get_result(rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    """Return the answer to a get; what was not asked for is null."""
    include = include_of(names)
    return {
        "ids": plain.texts(rows.ids),
        "embeddings": _floats(rows.embeddings) if include.embeddings else None,
        "documents": plain.texts(rows.documents) if include.documents else None,
        "uris": plain.texts(rows.uris) if include.uris else None,
        "metadatas": plain.objects(rows.metadatas) if include.metadatas else None,
        "include": names,
    }


async def page_body(rows: Rows, names: Sequence[str]) -> bytes:
    """Return the answer to a get as JSON, the embeddings written some at a time, so that other requests have their turn in between."""
    answer = get_result(rows, names)
    matrix = answer.pop("embeddings")
    if matrix is None or not len(matrix):
        return orjson.dumps({"embeddings": matrix, **answer})
    step = max(1, _FLOATS_OF_A_TURN // matrix.shape[1])
    parts: list[bytes | memoryview] = [b'{"embeddings":[']
    for start in range(0, len(matrix), step):
        part = orjson.dumps(matrix[start : start + step], option=orjson.OPT_SERIALIZE_NUMPY)
        parts += [memoryview(part)[1:-1], b","]
        await asyncio.sleep(0)
    parts[-1] = b"],"
    parts.append(orjson.dumps(answer)[1:])
    return b"".join(parts)


def query_result(results: Sequence[Rows], names: Sequence[str]) -> dict[str, Any]:
    """Return the answer to a query: a list per query embedding in every column."""
    include = include_of(names)
    return {
        "ids": [rows.ids for rows in results],
        "embeddings": [_floats(rows.embeddings) for rows in results] if include.embeddings else None,
        "documents": [rows.documents or [] for rows in results] if include.documents else None,
        "uris": [rows.uris or [] for rows in results] if include.uris else None,
        "metadatas": [plain.objects(rows.metadatas) for rows in results] if include.metadatas else None,
        "distances": [_floats(rows.distances) for rows in results] if include.distances else None,
        "include": names,
    }


def search_result(searches: Sequence[Search], results: Sequence[SearchRows]) -> dict[str, Any]:
    """Return the answer to a search: in every column an entry per search, null where it was not selected."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("ids", "documents", "embeddings", "metadatas", "scores", "select")
    }
    for search, found in zip(searches, results, strict=True):
        keys = search.select
        columns["ids"].append(found.rows.ids)
        columns["documents"].append(found.rows.documents or [] if "#document" in keys else None)
        columns["embeddings"].append(_floats(found.rows.embeddings) if "#embedding" in keys else None)
        columns["metadatas"].append(_selected(found.rows.metadatas, keys))
        columns["scores"].append(_floats(found.scores) if "#score" in keys else None)
        columns["select"].append(sorted(keys))
    return columns


def _selected(column: Sequence[bytes | None] | None, select: Sequence[str]) -> object:
    """Return a column of metadata with the selected keys only; null when none is selected."""
    if "#metadata" in select:
        return plain.objects(column)
    keys = [key for key in select if not key.startswith("#")]
    if not keys:
        return None
    found = []
    for text in column or ():
        metadata = {} if text is None else orjson.loads(text)
        found.append({key: metadata[key] for key in keys if key in metadata} or None)
    return found


def _floats(array: np.ndarray[Any, np.dtype[np.float32]] | None) -> object:
    if array is None or len(array) == 0:
        return []
    # orjson writes only C-contiguous arrays of the machine's byte order.
    return np.ascontiguousarray(array, dtype=np.float32)
