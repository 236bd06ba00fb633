"""What becomes of records that cannot be moved as they are: each danger has a name, and the operator chooses what is done.

`fail` stops the run before anything is lost; `quarantine` puts the record aside, whole, where it can be recovered, and names it
in the receipt; `convert` changes it in a way that is described here; `keep` moves it as it is; `report` only tells of it.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import numpy as np
import orjson

from pgchroma.errors import ConfigurationError, SourceError
from pgchroma.migrate.model import Limits, Quarantined, SourceCollection
from pgchroma.store import text
from pgchroma.types import MetadataValue, Record, RecordPage

LARGEST_DOCUMENT_BYTES: Final = 256 * 1024 * 1024
EMPTY_ID: Final = "_empty_id_"
_SYMBOL_FOR_NUL: Final = "\u2400"
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Danger:
    """One way in which a record resists being moved.

    Attributes:
        actions: what the operator may choose; the first is the default.
        convert: what `convert` does, in words.
    """

    code: str
    what: str
    actions: tuple[str, ...]
    convert: str = ""


DANGERS: Final = {
    danger.code: danger
    for danger in (
        Danger("vector-missing", "its vector is lost: neither the index files nor the log hold it", ("fail", "quarantine")),
        Danger("vector-not-finite", "its vector holds NaN or infinity", ("fail", "quarantine", "convert"), "NaN becomes 0, infinity the largest float32"),
        Danger("vector-dimension", "its vector is of another dimension than the collection", ("fail", "quarantine")),
        Danger("record-lost", "the application lost it, its log or index still holds it", ("report", "fail", "quarantine", "convert"), "it becomes a record again, after all others"),
        Danger("nul", "it holds U+0000", ("keep", "fail", "quarantine", "convert"), "U+0000 becomes U+2400, the symbol for it"),
        Danger("text-not-unicode", "its texts hold half of a surrogate pair, which is no Unicode", ("fail", "quarantine", "convert"), "U+FFFD takes its place"),
        Danger("id-empty", "its id is empty", ("fail", "quarantine", "convert"), f"its id becomes {EMPTY_ID}"),
        Danger("document-too-large", "its document is larger than 256 MiB", ("fail", "quarantine")),
        Danger("metadata-number", "its metadata hold an integer beyond 64 bits, NaN or infinity", ("keep", "fail", "quarantine", "convert"), "a large integer becomes a float; a key with NaN or infinity is left out"),
        Danger("metadata-key", "its metadata have a key that starts with chroma:", ("keep", "fail", "quarantine", "convert"), "the key is left out"),
        Danger("metadata-sparse", "its metadata hold a sparse vector", ("keep", "fail", "quarantine", "convert"), "the key is left out"),
        Danger("metadata-array", "its metadata hold a list", ("keep", "fail", "quarantine", "convert"), "the list becomes its JSON text"),
    )
}  # fmt: skip
_IN_METADATA = ("metadata-number", "metadata-key", "metadata-sparse", "metadata-array")
_UNREADABLE = ("vector-missing", "vector-not-finite", "vector-dimension")


def texts_of(record: Record) -> Iterator[str]:
    """Yield every text of a record, keys of its metadata included."""
    yield record.id
    for value in (record.document, record.uri):
        if value is not None:
            yield value
    for key, found in (record.metadata or {}).items():
        yield key
        yield from (item for item in (found if isinstance(found, list) else [found]) if isinstance(item, str))


def _with_texts(record: Record, change: Callable[[str], str], code: str) -> Record:
    """Return a record all of whose texts are changed in the way that the danger `code` asks for."""

    def clean(value: Any) -> Any:  # noqa: ANN401 - any metadata value
        if isinstance(value, str):
            return change(value)
        return [clean(item) for item in value] if isinstance(value, list) else value

    metadata = record.metadata and {str(clean(key)): clean(value) for key, value in record.metadata.items()}
    if metadata is not None and record.metadata is not None and len(metadata) < len(record.metadata):
        raise SourceError(
            f"record {record.id!r}: two of its metadata keys are the same once {DANGERS[code].convert}",
            hint=f"choose --policy {code}=quarantine",
        )
    return replace(
        record,
        id=str(clean(record.id)),
        document=record.document and change(record.document),
        uri=record.uri and change(record.uri),
        metadata=metadata,
    )


def _without_nul(record: Record) -> Record:
    return _with_texts(record, lambda value: value.replace("\0", _SYMBOL_FOR_NUL), "nul")


def _unicode(record: Record) -> Record:
    return _with_texts(record, text.repaired, "text-not-unicode")


def _finite(record: Record) -> Record:
    largest = float(np.finfo(np.float32).max)
    assert record.embedding is not None  # noqa: S101 - a vector that is not finite exists
    return replace(
        record, embedding=np.nan_to_num(record.embedding, nan=0.0, posinf=largest, neginf=-largest)
    )


def _odd_number(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, int):
        return value not in _INT64
    return isinstance(value, list) and any(map(_odd_number, value))


def _plain_numbers(record: Record) -> Record:
    kept: dict[str, MetadataValue] = {}
    for key, value in (record.metadata or {}).items():
        if not _odd_number(value):
            kept[key] = value
        elif isinstance(value, int) and abs(value) <= sys.float_info.max:
            kept[key] = float(value)
    return replace(record, metadata=kept or None)


def _without_reserved(record: Record) -> Record:
    kept = {key: value for key, value in (record.metadata or {}).items() if not key.startswith("chroma:")}
    return replace(record, metadata=kept or None)


def _without_lists(record: Record) -> Record:
    return replace(
        record,
        metadata={
            key: orjson.dumps(value).decode() if isinstance(value, list) else value
            for key, value in (record.metadata or {}).items()
        },
    )


def _without_sparse(record: Record) -> Record:
    kept: dict[str, MetadataValue] = {
        key: value for key, value in (record.metadata or {}).items() if not isinstance(value, dict)
    }
    return replace(record, metadata=kept or None)


_CONVERSIONS: dict[str, Callable[[Record], Record]] = {
    "vector-not-finite": _finite,
    "nul": _without_nul,
    "text-not-unicode": _unicode,
    "id-empty": lambda record: replace(record, id=EMPTY_ID),
    "metadata-number": _plain_numbers,
    "metadata-key": _without_reserved,
    "metadata-array": _without_lists,
    "metadata-sparse": _without_sparse,
}


@dataclass(frozen=True, slots=True)
class Policies:
    """What the operator chose; a danger that is not named has its default."""

    chosen: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Iterable[str], *, skip_unreadable: bool = False) -> "Policies":
        """Return the policies of `danger=action` options.

        Raises:
            ConfigurationError: an unknown danger, or an action that it does not have.
        """
        chosen = dict.fromkeys(_UNREADABLE, "quarantine") if skip_unreadable else {}
        for option in options:
            code, _, action = option.partition("=")
            danger = DANGERS.get(code)
            if danger is None:
                raise ConfigurationError(
                    f"--policy {option}: there is no danger {code!r}", hint=f"one of {', '.join(DANGERS)}"
                )
            if action not in danger.actions:
                raise ConfigurationError(
                    f"--policy {option}: {code} has no action {action!r}",
                    hint=f"one of {', '.join(danger.actions)}",
                )
            chosen[code] = action
        return cls(chosen)

    def action(self, code: str) -> str:
        """Return what is done about a danger."""
        return self.chosen.get(code, DANGERS[code].actions[0])

    def as_json(self) -> dict[str, str]:
        """Return every danger with its action."""
        return {code: self.action(code) for code in DANGERS}

    def sort(
        self, page: Sequence[Record], collection: SourceCollection, limits: Limits, *, doubtful: bool = False
    ) -> tuple[list[Record], list[Quarantined]]:
        """Return (records to move, records put aside) of a page, in its order.

        Args:
            doubtful: the texts come from where they need not be Unicode, so every record is looked at.

        Raises:
            SourceError: a record meets a danger whose action is `fail`.
        """
        if not doubtful and self._harmless(page, collection, limits):
            return page if isinstance(page, list) else list(page), []
        kept, aside = [], []
        for record in page:
            moved: Record | None = record
            for code in _dangers_of(record, collection.dimension, limits):
                action = self.action(code)
                if action == "keep" and _can_keep(code, limits):
                    continue
                if action == "convert" and moved is not None:
                    moved = _CONVERSIONS[code](moved)
                elif action == "quarantine":
                    aside.append(Quarantined(collection.path, code, DANGERS[code].what, record))
                    moved = None
                    break
                else:
                    raise SourceError(
                        f"{collection.path}: record {record.id!r} cannot be moved: {DANGERS[code].what}",
                        hint="choose what becomes of such records: "
                        + " or ".join(f"--policy {code}={other}" for other in DANGERS[code].actions if other not in ("fail", "keep")),
                    )  # fmt: skip
            if moved is not None:
                kept.append(moved)
        return kept, aside

    def _harmless(self, page: Sequence[Record], collection: SourceCollection, limits: Limits) -> bool:
        """Whether a quick look at the whole page finds nothing to decide about."""
        if self.action("nul") != "keep" or limits.plain_metadata or not (limits.arrays and limits.sparse):
            return False
        if any(self.action(code) != "keep" for code in _IN_METADATA):
            return False
        for record in page:
            if not record.id or (record.document and len(record.document) * 4 > LARGEST_DOCUMENT_BYTES):
                return False
        if isinstance(page, RecordPage):
            matrix = page.matrix
        else:
            vectors = [record.embedding for record in page if record.embedding is not None]
            if len(vectors) < len(page) or any(len(vector) != collection.dimension for vector in vectors):
                return False
            matrix = np.stack(vectors)
        return matrix.shape[1] == collection.dimension and (
            not limits.finite_vectors or bool(np.isfinite(matrix).all())
        )


def _can_keep(code: str, limits: Limits) -> bool:
    if code in ("metadata-number", "metadata-key"):
        return not limits.plain_metadata
    if code == "metadata-sparse":
        return limits.sparse
    return limits.arrays if code == "metadata-array" else True


def _dangers_of(record: Record, dimension: int | None, limits: Limits) -> Iterator[str]:
    if record.embedding is None:
        if not limits.missing_vectors:
            yield "vector-missing"
    elif dimension is not None and len(record.embedding) != dimension:
        yield "vector-dimension"
    elif limits.finite_vectors and not np.isfinite(record.embedding).all():
        yield "vector-not-finite"
    if not record.id and limits.ids:
        yield "id-empty"
    if record.document and len(record.document) * 4 > LARGEST_DOCUMENT_BYTES and len(record.document.encode()) > LARGEST_DOCUMENT_BYTES:  # fmt: skip
        yield "document-too-large"
    texts = list(texts_of(record))
    if not all(map(text.is_unicode, texts)):
        yield "text-not-unicode"
    if any("\0" in value for value in texts):
        yield "nul"
    values = (record.metadata or {}).values()
    if any(map(_odd_number, values)):
        yield "metadata-number"
    if any(key.startswith("chroma:") for key in record.metadata or {}):
        yield "metadata-key"
    if any(isinstance(value, dict) for value in values):
        yield "metadata-sparse"
    if any(isinstance(value, list) for value in values):
        yield "metadata-array"


class Readable(Protocol):
    """What `movable` needs of a source."""

    def records(self, collection: SourceCollection, after: int = 0) -> Iterator[list[Record]]:
        """Yield pages of records in insertion order."""

    def lost(self, collection: SourceCollection) -> Iterator[list[Record]]:
        """Yield the records that the source's application lost."""


def movable(
    source: Readable, collection: SourceCollection, policies: Policies, limits: Limits, after: int = 0
) -> Iterator[tuple[list[Record], list[Quarantined], int]]:
    """Yield (records to move, records put aside, position of the last of them) page by page, lost records last.

    Raises:
        SourceError: a record meets a danger whose action is `fail`.
    """
    for page in source.records(collection, after):
        kept, aside = policies.sort(page, collection, limits)
        yield kept, aside, page[-1].seq
    action = policies.action("record-lost")
    if action == "report":
        return
    for page in source.lost(collection):
        rest = [record for record in page if record.seq > after]
        if not rest:
            continue
        if action == "fail":
            raise SourceError(
                f"{collection.path}: the application lost record {rest[0].id!r}, which its log or index still holds",
                hint="choose --policy record-lost=report, quarantine or convert",
            )
        if action == "quarantine":
            what = DANGERS["record-lost"].what
            yield (
                [],
                [Quarantined(collection.path, "record-lost", what, record) for record in rest],
                rest[-1].seq,
            )
        else:
            # Chroma refused some of these because of their texts.
            kept, aside = policies.sort(rest, collection, limits, doubtful=True)
            yield kept, aside, rest[-1].seq
