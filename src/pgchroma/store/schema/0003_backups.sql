-- What there was to restore: digests of every collection at a point in the WAL, and what the restore drills found.

CREATE TABLE pgchroma.backup_points (
    name text COLLATE "C" PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now(),
    backup_label text,
    backup_type text,
    lsn pg_lsn,
    wal_file text,
    max_seq bigint,
    collections bigint,
    records bigint,
    digest text,
    held_seconds double precision,
    digest_seconds double precision,
    completed_at timestamptz
);
COMMENT ON TABLE pgchroma.backup_points IS
    'one row per named restore point; it is committed just before the point, so that a restored database knows which one it is at';
COMMENT ON COLUMN pgchroma.backup_points.max_seq IS 'last number of pgchroma.record_seqs at the point';
COMMENT ON COLUMN pgchroma.backup_points.held_seconds IS 'how long writes waited for it';
COMMENT ON COLUMN pgchroma.backup_points.completed_at IS 'when the digests were written; null in a database restored to the point';

CREATE TABLE pgchroma.backup_digests (
    point text COLLATE "C" NOT NULL REFERENCES pgchroma.backup_points (name) ON DELETE CASCADE,
    collection_id uuid NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    database text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    records bigint NOT NULL,
    digest text NOT NULL,
    PRIMARY KEY (point, collection_id)
);

CREATE TABLE pgchroma.restore_drills (
    started_at timestamptz PRIMARY KEY,
    duration_seconds double precision NOT NULL,
    result text NOT NULL CHECK (result IN ('ok', 'failed')),
    backup_label text,
    point text,
    message text NOT NULL DEFAULT ''
);
