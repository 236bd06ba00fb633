-- What the operator chose for records that cannot be moved as they are, and the records that were put aside for it.

ALTER TABLE pgchroma.migration_status ADD COLUMN policies jsonb NOT NULL DEFAULT '{}';
ALTER TABLE pgchroma.migration_status DROP COLUMN skip_unreadable;
COMMENT ON COLUMN pgchroma.migration_status.policies IS 'danger -> action: what becomes of records that cannot be moved as they are';
COMMENT ON COLUMN pgchroma.migration_status.skipped IS 'records put aside into pgchroma.migration_quarantine';

-- Whole records: `embedding` may hold NaN and infinity here. U+0000 in texts is written as in the records' own tables.
CREATE TABLE pgchroma.migration_quarantine (
    run_id uuid NOT NULL,
    source_collection_id uuid NOT NULL,
    position bigint NOT NULL,
    collection text COLLATE "C" NOT NULL,
    code text NOT NULL,
    reason text NOT NULL,
    id text COLLATE "C" NOT NULL,
    embedding real[],
    document text,
    metadata jsonb,
    metadata_exact text,
    uri text,
    put_aside_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, source_collection_id, position)
);
