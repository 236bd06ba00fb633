-- The catalog: what exists. Records live in two tables per collection in schema pgchroma_data (see store/tables.py).

CREATE TABLE pgchroma.tenants (
    name text COLLATE "C" PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- No foreign key to tenants: Chroma accepts a database in a tenant that was never created.
CREATE TABLE pgchroma.databases (
    id uuid PRIMARY KEY,
    tenant text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant, name)
);

CREATE TABLE pgchroma.collections (
    id uuid PRIMARY KEY,
    database_id uuid NOT NULL REFERENCES pgchroma.databases (id) ON DELETE CASCADE,
    name text COLLATE "C" NOT NULL,
    metadata jsonb,
    metadata_exact text,
    configuration jsonb NOT NULL,
    schema jsonb NOT NULL,
    dimension integer CHECK (dimension BETWEEN 1 AND 16000),
    table_number bigint UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (database_id, name),
    CHECK ((dimension IS NULL) = (table_number IS NULL))
);
COMMENT ON COLUMN pgchroma.collections.table_number IS
    'names the tables pgchroma_data.r<n> (records) and pgchroma_data.v<n> (vectors); null until the first write';

-- One vector index each: it covers the vectors with low_seq < seq <= high_seq. Vectors above the highest high_seq are the tail,
-- which is searched exactly.
CREATE TABLE pgchroma.index_segments (
    collection_id uuid NOT NULL REFERENCES pgchroma.collections (id) ON DELETE CASCADE,
    low_seq bigint NOT NULL,
    high_seq bigint NOT NULL,
    index_name text NOT NULL UNIQUE,
    row_count bigint NOT NULL,
    build_seconds double precision NOT NULL,
    built_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (collection_id, high_seq),
    CHECK (low_seq < high_seq)
);

CREATE SEQUENCE pgchroma.table_numbers;

-- Insertion order of records and of vectors, over all collections: one sequence costs nothing per collection.
CREATE SEQUENCE pgchroma.record_seqs;

INSERT INTO pgchroma.tenants (name) VALUES ('default_tenant');
INSERT INTO pgchroma.databases (id, tenant, name)
VALUES ('00000000-0000-0000-0000-000000000000', 'default_tenant', 'default_database');
