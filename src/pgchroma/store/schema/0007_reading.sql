-- What reading fast needs to know: what may be remembered of a collection, and which indexes there are.

-- Whatever changes what a reader knows of a collection gives it a new revision; so a connection may keep what it read once, and
-- ask in the same statement that reads the records whether it is still true. From a sequence, so that a collection which is deleted
-- and made anew under the same id never has one twice.
CREATE SEQUENCE pgchroma.revisions;

ALTER TABLE pgchroma.collections
    ADD COLUMN revision bigint NOT NULL DEFAULT nextval('pgchroma.revisions'),
    ADD COLUMN sketch smallint NOT NULL DEFAULT 0,
    ADD COLUMN unit_length boolean NOT NULL DEFAULT true;
COMMENT ON COLUMN pgchroma.collections.sketch IS
    'bits per dimension of r<n>.sketch, from which filtered queries choose what to compare exactly; 0 for tables without';
COMMENT ON COLUMN pgchroma.collections.unit_length IS
    'false once a vector was written whose length is not 1; sketches know angles only';

CREATE FUNCTION pgchroma.revise() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.revision := nextval('pgchroma.revisions');
    RETURN NEW;
END $$;
CREATE TRIGGER revise BEFORE UPDATE OF database_id, name, metadata, metadata_exact, configuration, schema, dimension, table_number,
    sketch, unit_length ON pgchroma.collections FOR EACH ROW EXECUTE FUNCTION pgchroma.revise();

ALTER TABLE pgchroma.index_segments
    ADD COLUMN kind text NOT NULL DEFAULT 'hnsw' CHECK (kind IN ('hnsw', 'ivfflat')),
    ADD COLUMN quantisation text NOT NULL DEFAULT 'none' CHECK (quantisation IN ('none', 'halfvec', 'binary')),
    ADD COLUMN options text NOT NULL DEFAULT '',
    ADD COLUMN lists integer;
COMMENT ON COLUMN pgchroma.index_segments.options IS 'what the index was built with; another value than the wanted one has it rebuilt';

-- Indexes over records rather than vectors, built in the background just the same: they cover low_seq < r<n>.seq <= high_seq.
CREATE TABLE pgchroma.record_segments (
    collection_id uuid NOT NULL REFERENCES pgchroma.collections (id) ON DELETE CASCADE,
    low_seq bigint NOT NULL,
    high_seq bigint NOT NULL,
    metadata_index text NOT NULL UNIQUE,
    document_index text UNIQUE,
    document_method text CHECK (document_method IN ('pg_trgm', 'function')),
    row_count bigint NOT NULL,
    build_seconds double precision NOT NULL,
    built_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (collection_id, high_seq),
    CHECK (low_seq < high_seq),
    CHECK ((document_index IS NULL) = (document_method IS NULL))
);

CREATE FUNCTION pgchroma.revise_collection() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE pgchroma.collections SET revision = nextval('pgchroma.revisions')
    WHERE id IN (SELECT DISTINCT collection_id FROM changed);
    RETURN NULL;
END $$;
CREATE TRIGGER revise_inserted AFTER INSERT ON pgchroma.index_segments
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION pgchroma.revise_collection();
CREATE TRIGGER revise_updated AFTER UPDATE ON pgchroma.index_segments
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION pgchroma.revise_collection();
CREATE TRIGGER revise_deleted AFTER DELETE ON pgchroma.index_segments
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION pgchroma.revise_collection();
CREATE TRIGGER revise_inserted AFTER INSERT ON pgchroma.record_segments
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION pgchroma.revise_collection();
CREATE TRIGGER revise_updated AFTER UPDATE ON pgchroma.record_segments
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION pgchroma.revise_collection();
CREATE TRIGGER revise_deleted AFTER DELETE ON pgchroma.record_segments
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION pgchroma.revise_collection();

-- Every run of three characters in a document: what pg_trgm would index, for a PostgreSQL that comes without it. Dear, so that the
-- planner never prefers calling it on rows to asking an index.
CREATE FUNCTION pgchroma.trigrams(document text) RETURNS text[]
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 100000
    AS $$
        SELECT coalesce(array_agg(DISTINCT (a || b || c) COLLATE "C"), '{}')
        FROM string_to_array(document, NULL) AS letters (s),
            ROWS FROM (unnest(s), unnest(s[2:]), unnest(s[3:])) AS run (a, b, c)
        WHERE c IS NOT NULL
    $$;
