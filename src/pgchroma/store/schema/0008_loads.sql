-- Loads of logical backups that are under way. Records go into tables of their own, which become a collection's in one transaction at
-- the end; a chunk of the dump and the row here that says so are committed together, so that a load can be continued.

CREATE TABLE pgchroma.loads (
    dump_digest text NOT NULL,
    source_id uuid NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    database text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    policy text NOT NULL CHECK (policy IN ('fail', 'replace', 'merge')),
    table_number bigint,
    unit_length boolean NOT NULL DEFAULT true,
    chunks_done integer NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (dump_digest, source_id, tenant, database, name, policy)
);
COMMENT ON COLUMN pgchroma.loads.table_number IS 'names the tables that are being filled; null for one without records and for a merge';

-- Tables of collections that a load replaced, until they are dropped.
CREATE TABLE pgchroma.replaced_tables (
    table_number bigint PRIMARY KEY,
    replaced_at timestamptz NOT NULL DEFAULT now()
);
