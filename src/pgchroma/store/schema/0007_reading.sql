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

-- Every run of three bytes in a document, as a number: what finds substrings in a PostgreSQL that comes without pg_trgm. Its cost is
-- set high so that the planner never prefers calling it on rows to asking an index.
CREATE FUNCTION pgchroma.runs(document text) RETURNS integer[]
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 100000
    AS $$
        SELECT coalesce(array_agg(65536 * get_byte(b, i) + 256 * get_byte(b, i + 1) + get_byte(b, i + 2)), '{}')
        FROM convert_to(document, 'UTF8') AS bytes (b), generate_series(0, length(b) - 3) AS i
    $$;
