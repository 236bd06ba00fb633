"""Proving a finished migration once more, from its receipt or without one; reads, and writes nothing."""

import itertools
from collections.abc import Iterator, Sequence

from pgchroma.errors import ConfigurationError, SourceChangedError
from pgchroma.migrate import proof as proofs
from pgchroma.migrate.digest import CollectionDigest, record_digest
from pgchroma.migrate.model import Json, Limits, Sink, Source, SourceCollection, describe_changes
from pgchroma.migrate.policies import Policies, movable
from pgchroma.migrate.progress import Display
from pgchroma.migrate.proof import CollectionProof
from pgchroma.migrate.questions import Questions
from pgchroma.migrate.second import SecondProcess
from pgchroma.types import Record


def limits_of(kind: str, layout: str) -> Limits:
    """Return what a target of this kind could hold when it was written, as far as that decides which records were moved."""
    if kind.startswith("exchange"):
        return Limits(finite_vectors=False, ids=False, missing_vectors=True)
    if kind == "pgchroma-database":
        return Limits()
    old = layout.startswith(("chromadb 0.", "Chroma server 0."))
    arrays = not old and not layout.startswith("chromadb 1.0")
    return Limits(vectors=1_000_000, plain_metadata=True, arrays=arrays, sparse=kind != "chroma-folder")


def require_unchanged(receipt: Json, source: Source) -> None:
    """Raise SourceChangedError, naming what changed, when a source is no longer what the receipt is about."""
    if source.fingerprint != receipt["source"]["fingerprint"]:
        before = {item["collection"]: item["state"] for item in receipt["collections"]}
        changed = describe_changes(before, {item.path: item.state for item in source.collections()})
        raise SourceChangedError(
            f"{source.description['path']} changed since the receipt was written: "
            + ("; ".join(changed) or "its layout or a collection that was not moved"),
            hint="compare the target with the receipt alone: --against receipt",
        )


def sides(
    source: Source,
    target: Source,
    policies: Policies,
    limits: Limits,
    display: Display,
    second: SecondProcess | None = None,
    questions: Sequence[Questions] = (),
) -> list[CollectionProof]:
    """Compare every collection of the source with the target's of the same name, record by record.

    Args:
        second: a process that reads the target, where that is a database.
        questions: those of each collection, which have the source's answers afterwards; none when nobody is to be asked.
    """
    found = []
    for collection, asked in itertools.zip_longest(source.collections(), questions):
        step = display.step(f"proving {collection.path}", collection.count)
        see = asked.see if asked else None
        found.append(
            proofs.prove(source, collection, target, policies, limits, step.advance, see=see, second=second)
        )
    return found


async def ask(sink: Sink, questions: Sequence[Questions]) -> dict[str, Json]:
    """Put the questions to a target that answers any, and return its recall by collection; nothing is written."""
    found = {}
    for item in questions:
        if await sink.find(item.collection) is not None and (answers := await item.put_to(sink.query)):
            found[item.collection.path] = answers
    return found


def against_receipt(
    receipt: Json, side: Source, which: str, policies: Policies, limits: Limits, display: Display
) -> list[CollectionProof]:
    """Compare one side's digests with those in the receipt; needs nothing of the other side.

    Args:
        which: `source` or `target`, the side that is read.
    """
    present = {item.path: item for item in side.collections()}
    found = []
    for item in receipt["collections"]:
        try:
            # Vectors that are equal within rounding only have other bits on each side.
            exact = item.get("vectors", "bit for bit") == "bit for bit"
            wanted = item["digest_source" if exact or which == "source" else "digest_target"]
            path, records, distance = item["collection"], item["records_source"], item["distance"]
        except KeyError as error:
            raise ConfigurationError(
                f"the receipt lacks {error} of a collection", hint="name an unedited receipt"
            ) from error
        proof = CollectionProof(path, records_source=records, digest_source=wanted)
        collection = present.get(path)
        if collection is None:
            proof.add("collection", f"not in the {which}")
        else:
            step = display.step(f"reading {path}", records)
            total = CollectionDigest()
            for page in _pages(side, collection, which, policies, limits):
                total.add(record_digest(record) for record in page)
                step.advance(len(page))
            proof.digest_target, proof.records_target = total.hexdigest(), total.count
            if collection.space != distance:
                proof.add("distance", f"{distance} in the receipt, {collection.space} in the {which}")
            if proof.digest_target != wanted:
                proof.add("records", f"the {which}'s records are not those that were moved")
        found.append(proof)
    return found


def _pages(
    side: Source, collection: SourceCollection, which: str, policies: Policies, limits: Limits
) -> Iterator[list[Record]]:
    if which == "target":
        return side.records(collection)
    return (kept for kept, _, _ in movable(side, collection, policies, limits))
