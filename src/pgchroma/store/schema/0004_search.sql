-- Forks, and how far the indexer is.

ALTER TABLE pgchroma.collections
    ADD COLUMN version integer NOT NULL DEFAULT 0,
    ADD COLUMN indexed_operations bigint NOT NULL DEFAULT 0,
    ADD COLUMN lineage uuid;
COMMENT ON COLUMN pgchroma.collections.version IS 'how often the indexer has caught up with the collection';
COMMENT ON COLUMN pgchroma.collections.indexed_operations IS 'record operations up to the last time it did; later ones are in pgchroma.operations';
COMMENT ON COLUMN pgchroma.collections.lineage IS 'of a fork: the collection that it, and whatever that was forked from, goes back to';
CREATE INDEX collections_lineage ON pgchroma.collections (lineage) WHERE lineage IS NOT NULL;

-- One row per committed batch, until the indexer adds them up. No reference to collections, on purpose: its check would lock the
-- collection's row in every write.
CREATE TABLE pgchroma.operations (
    collection_id uuid NOT NULL,
    operations bigint NOT NULL
);
CREATE INDEX operations_collection ON pgchroma.operations (collection_id);
