-- What the indexer knows of each collection's tail, for monitoring: exact as of its last look, which statistics are not.

CREATE TABLE pgchroma.tails (
    collection_id uuid PRIMARY KEY REFERENCES pgchroma.collections (id) ON DELETE CASCADE,
    rows bigint NOT NULL,
    watermark bigint NOT NULL,
    due_since timestamptz
);
COMMENT ON COLUMN pgchroma.tails.rows IS 'vectors above the watermark, which no index covers';
COMMENT ON COLUMN pgchroma.tails.due_since IS 'since when they have been enough for an index; null while they are not';
