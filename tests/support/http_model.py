"""A collection of the server beside a model of it in memory: both do the same and are compared."""

import base64
import http.client
import itertools
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from support.api import COLLECTIONS
from support.metadata import same
from support.model import Model, Write, distance, float32

_COMPLAINT = re.compile(r"\b(ERROR|FATAL|PANIC):")
_names = itertools.count(1)


class Collection:
    """A new collection of the server, and the model of it.

    Attributes:
        space: of its distances.
        path: of its routes.
    """

    def __init__(self, connection: http.client.HTTPConnection, space: str, first: list[float]) -> None:
        self._connection = connection
        self.space = space
        self.model = Model()
        body = {"name": f"model-{next(_names)}", "configuration": {"hnsw": {"space": space}}}
        self.path = f"{COLLECTIONS}/{self.send('POST', COLLECTIONS, body)[1]['id']}"
        # A first record fixes the dimension.
        self.write("add", [Write("a", first)])

    def send(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        self._connection.request(
            method, path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def do(self, operation: tuple[Any, ...]) -> None:
        """Let server and model do the same and compare what they say."""
        name, *arguments = operation
        if name in ("add", "upsert", "update"):
            self.write(name, *arguments)
        else:
            getattr(self, name)(*arguments)

    def write(self, name: str, batch: list[Write]) -> None:
        body: dict[str, Any] = {"ids": [write.id for write in batch]}
        embeddings = [write.embedding for write in batch]
        if any(embeddings):
            body["embeddings"] = embeddings
            if len(batch) % 2 == 0:
                body["embeddings"] = [
                    entry and base64.b64encode(struct.pack(f"<{len(entry)}f", *entry)).decode()
                    for entry in embeddings
                ]
        columns = ("document", "documents"), ("metadata", "metadatas"), ("uri", "uris")
        for attribute, member in columns:
            column = [getattr(write, attribute) for write in batch]
            if any(value is not None for value in column):
                body[member] = column
        answer = self.send("POST", f"{self.path}/{name}", body)
        assert answer == (201 if name == "add" else 200, {})
        getattr(self.model, name)(batch)

    def delete(self, selection: Any, limit: int | None) -> None:
        ids, where, where_document = selection
        has_clause = where is not None or where_document is not None
        if not has_clause:
            limit = None
            if not ids:
                return
        body = {"ids": ids, "where": where, "where_document": where_document, "limit": limit}
        victims = self.model.select(*selection)[:limit]
        assert self.send("POST", f"{self.path}/delete", body) == (200, {"deleted": len(victims)})
        self.model.delete(victims)

    def get(self, selection: Any, limit: int | None, offset: int | None) -> None:
        ids, where, where_document = selection
        body = {
            "ids": ids,
            "where": where,
            "where_document": where_document,
            "limit": limit,
            "offset": offset,
        }
        include = ["documents", "metadatas", "uris", "embeddings"]
        status, found = self.send("POST", f"{self.path}/get", {**body, "include": include})
        assert status == 200, found
        start = offset or 0
        chosen = self.model.select(*selection)[start : None if limit is None else start + limit]
        assert found["ids"] == chosen
        for number, record_id in enumerate(chosen):
            entry = self.model.records[record_id]
            assert found["documents"][number] == entry.document
            assert found["uris"][number] == entry.uri
            assert same(found["metadatas"][number], entry.metadata), (
                found["metadatas"][number],
                entry.metadata,
            )
            assert same(float32(found["embeddings"][number]), entry.embedding)

    def query(self, selection: Any, embeddings: list[list[float]], count: int) -> None:
        ids, where, where_document = selection
        body = {
            "ids": ids,
            "where": where,
            "where_document": where_document,
            "query_embeddings": embeddings,
            "n_results": count,
        }
        chosen = self.model.select(*selection)
        status, found = self.send("POST", f"{self.path}/query", body)
        if count and ids and not chosen and where is None and where_document is None:
            assert (status, found["error"]) == (400, "InvalidArgumentError")
            return
        assert status == 200, found
        for number, embedding in enumerate(embeddings):
            known = {
                record_id: distance(self.space, self.model.records[record_id].embedding, embedding)
                for record_id in chosen
            }
            got = dict(zip(found["ids"][number], found["distances"][number], strict=True))
            assert got == pytest.approx({record_id: known[record_id] for record_id in got}, abs=1e-5)
            self.compare(list(got.values()), sorted(known.values())[:count])
            assert found["documents"][number] == [self.model.records[record_id].document for record_id in got]

    def compare(self, found: list[float], best: list[float]) -> None:
        """Compare the distances of an answer with those of the best."""
        assert found == pytest.approx(best, abs=1e-5)

    def mistake(self, request: tuple[str, Any]) -> None:
        name, body = request
        status, answer = self.send("POST", f"{self.path}/{name}", body)
        assert status in (400, 422), answer
        assert answer["message"]

    def check(self) -> None:
        """Compare everything that is left."""
        self.get((None, None, None), None, None)
        assert self.send("GET", f"{self.path}/count") == (200, len(self.model.records))


def complaints(log: Path) -> list[str]:
    """Return the lines of PostgreSQL's log in which it complains."""
    return [line for line in log.read_text(errors="replace").splitlines() if _COMPLAINT.search(line)]
