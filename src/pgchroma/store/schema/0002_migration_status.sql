-- How far migrations into this database are: one row per run and collection. A batch of records and the row here that says so
-- are committed together, so what this table claims is always true, whatever was killed when.

CREATE TABLE pgchroma.migration_status (
    run_id uuid NOT NULL,
    source_collection_id uuid NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    database text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    target_collection_id uuid,
    phase text NOT NULL DEFAULT 'planned' CHECK (phase IN ('planned', 'copying', 'copied', 'verified', 'different')),
    started_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz,
    source_records bigint NOT NULL,
    records bigint NOT NULL DEFAULT 0,
    skipped bigint NOT NULL DEFAULT 0,
    errors bigint NOT NULL DEFAULT 0,
    last_position bigint NOT NULL DEFAULT 0,
    source text NOT NULL,
    source_fingerprint text NOT NULL,
    source_state jsonb NOT NULL,
    skip_unreadable boolean NOT NULL,
    pgchroma_version text NOT NULL,
    PRIMARY KEY (run_id, source_collection_id)
);
COMMENT ON COLUMN pgchroma.migration_status.source_records IS 'records the source has';
COMMENT ON COLUMN pgchroma.migration_status.records IS 'records written to the target';
COMMENT ON COLUMN pgchroma.migration_status.skipped IS 'records left behind because their vector cannot be read or kept';
COMMENT ON COLUMN pgchroma.migration_status.errors IS 'differences that the row-by-row proof found';
COMMENT ON COLUMN pgchroma.migration_status.last_position IS 'position in the source of the last record looked at';
COMMENT ON COLUMN pgchroma.migration_status.completed_at IS 'when the proof ended';
