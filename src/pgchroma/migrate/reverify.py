"""Proving a finished migration once more, from its receipt; reads both sides and writes to neither."""

from pgchroma.errors import ConfigurationError, SourceChangedError
from pgchroma.migrate import proof as proofs
from pgchroma.migrate.model import Json, Sink, Source, describe_changes
from pgchroma.migrate.progress import Display
from pgchroma.migrate.proof import CollectionProof
from pgchroma.types import Collection


async def against_source(
    receipt: Json, source: Source, sink: Sink, display: Display
) -> list[CollectionProof]:
    """Compare source and target record by record.

    Raises:
        SourceChangedError: the source is no longer what the receipt is about.
    """
    if source.fingerprint != receipt["source"]["fingerprint"]:
        before = {item["collection"]: item["state"] for item in receipt["collections"]}
        changed = describe_changes(before, {item.path: item.state for item in source.collections()})
        raise SourceChangedError(
            f"{source.description['path']} changed since the receipt was written: " + "; ".join(changed),
            hint="compare the target with the receipt alone: --against receipt",
        )
    found = []
    for collection in source.collections():
        existing = await sink.find(collection)
        step = display.step(f"proving {collection.path}", collection.count)
        target = existing[0] if existing else None
        found.append(await proofs.prove(source, collection, sink, target, step.advance))
    return found


async def against_receipt(
    receipt: Json, targets: dict[str, Collection], sink: Sink, display: Display
) -> list[CollectionProof]:
    """Compare the target's digests with those in the receipt; needs no source.

    Args:
        targets: the target's collections by path.
    """
    found = []
    for item in receipt["collections"]:
        try:
            path, digest, records = item["collection"], item["digest_source"], item["records_source"]
        except KeyError as error:
            raise ConfigurationError(
                f"the receipt lacks {error} of a collection", hint="name an unedited receipt"
            ) from error
        proof = CollectionProof(path, records_source=records, digest_source=digest)
        target = targets.get(path)
        if target is None:
            proof.add("collection", "not in the target")
        else:
            step = display.step(f"reading {path}", records)
            proof.digest_target, proof.records_target = await proofs.target_digest(sink, target, step.advance)
            if target.space != item["distance"]:
                proof.add("distance", f"{item['distance']} in the receipt, {target.space} in the target")
            if proof.digest_target != digest:
                proof.add("records", "the target's records are not those that were moved")
        found.append(proof)
    return found
