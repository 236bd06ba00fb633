"""Writers that note what they were promised, and the comparison of that with what is there afterwards.

Every writer sends batches, one after the other: records that are new, one record of its own that counts its batches, and some that
all writers fight over. Each record says which batch it is from, in document, embedding and metadata, so that afterwards it can be told
which batches are there, whole or in part, and whether any writer's part of a contested record was overwritten by another's.
"""

import contextlib
import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from support.api import COLLECTIONS

NEW, CONTESTED = 8, 4
_CONTESTED_IDS = [f"contested-{number}" for number in range(12)]
_TIMEOUT_SECONDS = 30.0
_PAGE = 2_000


@dataclass(slots=True)
class Writer:
    """One client and what it knows.

    Attributes:
        acknowledged: numbers of the batches that were answered with success.
        doubtful: those that were not answered, or refused for now (503): they may be there, whole, or not.
        contested: id -> number of the last batch that was acknowledged with it.
        surprises: any other answer, which none of the faults excuses.
        longest_gap: seconds between two successes, at most.
    """

    name: int
    port: int
    acknowledged: list[int] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)
    contested: dict[str, int] = field(default_factory=dict)
    surprises: list[str] = field(default_factory=list)
    longest_gap: float = 0.0

    def stamp(self, number: int) -> int:
        """Return what tells this writer's batch from all others; a float32 holds it exactly."""
        return self.name * 100_000 + number

    def batch(self, number: int) -> dict[str, Any]:
        """Return a batch, always the same for the same number."""
        chosen = random.Random(self.stamp(number)).sample(_CONTESTED_IDS, CONTESTED)
        ids = [f"{self.name}-{number}-{row}" for row in range(NEW)] + [f"counter-{self.name}", *chosen]
        stamp = self.stamp(number)
        return {
            "ids": ids,
            "embeddings": [[stamp, 1.0]] * len(ids),
            "documents": [str(stamp)] * len(ids),
            "metadatas": [{f"of-{self.name}": number}] * len(ids),
        }

    def run(self, path: str, stop: threading.Event) -> None:
        """Write until told to stop."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT_SECONDS)
        number, last = 0, time.monotonic()
        while not stop.is_set():
            batch = self.batch(number)
            try:
                connection.request("POST", path, json.dumps(batch), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                self.doubtful.append(number)
                stop.wait(0.02)
            else:
                if answer.status == 200:
                    self.acknowledged.append(number)
                    self.contested.update(dict.fromkeys(batch["ids"][NEW + 1 :], number))
                    self.longest_gap = max(self.longest_gap, time.monotonic() - last)
                    last = time.monotonic()
                else:
                    self.doubtful.append(number)
                    if answer.status != 503:
                        self.surprises.append(f"{answer.status} {text[:300].decode(errors='replace')}")
                    stop.wait(0.02)
            number += 1
        connection.close()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the writes.

    Attributes:
        acknowledged: batches answered with success.
        doubtful: batches without an answer, or refused for now.
        lost: acknowledged batches of which anything is missing or was overwritten by something older.
        partial: batches of which some records are there and others are not.
        invented: records that nobody wrote.
        surprises: answers that no client should get.
        longest_gap: seconds that a writer went without a success, at most.
    """

    acknowledged: int
    doubtful: int
    lost: int
    partial: int
    invented: int
    surprises: Sequence[str]
    longest_gap: float

    @property
    def is_sound(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.partial or self.invented or self.surprises)


class Storm:
    """Several writers at one collection, over one server or more."""

    def __init__(self, ports: Sequence[int], *, writers: int = 6) -> None:
        self.ports = ports
        self.writers = [Writer(name, ports[name % len(ports)]) for name in range(writers)]
        status, answer = _request(
            ports[0], "POST", COLLECTIONS, {"name": "storm", "configuration": {"hnsw": {"space": "l2"}}}
        )
        if status != 200:
            raise AssertionError(f"no collection to write to: {answer}")
        self.path = f"{COLLECTIONS}/{answer['id']}"

    @contextlib.contextmanager
    def blowing(self) -> Iterator[None]:
        """Write for as long as the block lasts."""
        stop = threading.Event()
        threads = [
            threading.Thread(target=writer.run, args=(f"{self.path}/upsert", stop)) for writer in self.writers
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(2 * _TIMEOUT_SECONDS)

    def acknowledged(self) -> int:
        """Return how many batches have been acknowledged by now."""
        return sum(len(writer.acknowledged) for writer in self.writers)

    def more(self, count: int) -> Callable[[], bool]:
        """Return the condition that every writer has had so many more successes than now."""
        before = [len(writer.acknowledged) for writer in self.writers]
        return lambda: all(
            len(writer.acknowledged) >= had + count for writer, had in zip(self.writers, before, strict=True)
        )

    def outcome(self) -> Outcome:
        """Read everything and compare it with what the writers know; the servers must answer by now."""
        found = self._records()
        lost = partial = 0
        known = {*_CONTESTED_IDS}
        for writer in self.writers:
            known.add(f"counter-{writer.name}")
            sent = set(writer.acknowledged) | set(writer.doubtful)
            known |= {f"{writer.name}-{number}-{row}" for number in sent for row in range(NEW)}
            present = Counter(
                number
                for number in sent
                for row in range(NEW)
                if self._is_from(found.get(f"{writer.name}-{number}-{row}"), writer, number)
            )
            partial += sum(0 < present[number] < NEW for number in sent)
            gone = {number for number in writer.acknowledged if present[number] < NEW}
            # What was acknowledged last must stand, or something newer.
            last = {**writer.contested}
            if writer.acknowledged:
                last[f"counter-{writer.name}"] = writer.acknowledged[-1]
            for record_id, number in last.items():
                kept = found.get(record_id, {}).get("metadata", {}).get(f"of-{writer.name}", -1)
                if kept < number or kept not in sent:
                    gone.add(number)
            lost += len(gone)
        mixed = sum(not self._is_of_one_write(found[record_id]) for record_id in found)
        return Outcome(
            self.acknowledged(),
            sum(len(writer.doubtful) for writer in self.writers),
            lost,
            partial + mixed,
            len(found.keys() - known),
            [surprise for writer in self.writers for surprise in writer.surprises],
            max(writer.longest_gap for writer in self.writers),
        )

    @staticmethod
    def _is_from(record: dict[str, Any] | None, writer: Writer, number: int) -> bool:
        return record is not None and record["document"] == str(writer.stamp(number))

    @staticmethod
    def _is_of_one_write(record: dict[str, Any]) -> bool:
        """Whether embedding, document and metadata of a record are those of one batch."""
        stamp = int(record["document"])
        name, number = divmod(stamp, 100_000)
        return bool(record["embedding"] == [stamp, 1.0]) and bool(
            record["metadata"].get(f"of-{name}") == number
        )

    def _records(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        include = ["embeddings", "documents", "metadatas"]
        while True:
            body = {"limit": _PAGE, "offset": len(found), "include": include}
            status, page = _request(self.ports[0], "POST", f"{self.path}/get", body)
            if status != 200:
                raise AssertionError(f"the records cannot be read: {page}")
            columns = (page["embeddings"], page["documents"], page["metadatas"])
            for record_id, embedding, document, metadata in zip(page["ids"], *columns, strict=True):
                found[record_id] = {"embedding": embedding, "document": document, "metadata": metadata}
            if len(page["ids"]) < _PAGE:
                return found


def _request(port: int, method: str, path: str, body: object) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text)
