-- Who may use the server. A token is <id>_<secret>: the id finds the row, of the secret only its SHA-256 is here.

CREATE TABLE pgchroma.tokens (
    id text COLLATE "C" PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    digest bytea NOT NULL CHECK (length(digest) = 32),
    tenant text COLLATE "C",
    databases text[] COLLATE "C",
    scope text NOT NULL CHECK (scope IN ('read', 'write', 'admin', 'operator', 'monitor')),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    CHECK ((tenant IS NULL) = (scope IN ('operator', 'monitor'))),
    CHECK (databases IS NULL OR (tenant IS NOT NULL AND cardinality(databases) > 0))
);
CREATE UNIQUE INDEX tokens_name ON pgchroma.tokens (name) WHERE revoked_at IS NULL;
COMMENT ON COLUMN pgchroma.tokens.tenant IS 'the one tenant it reaches; null for the scopes that belong to none';
COMMENT ON COLUMN pgchroma.tokens.databases IS 'the databases of the tenant that it reaches; null for all';
COMMENT ON COLUMN pgchroma.tokens.last_used_at IS 'to the minute';

-- Every worker keeps the tokens in memory and looks at this number every second; it changes in the transaction that changes a token,
-- whoever makes the change and by whatever means.
CREATE TABLE pgchroma.token_version (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version bigint NOT NULL
);
INSERT INTO pgchroma.token_version (version) VALUES (1);

CREATE FUNCTION pgchroma.token_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE pgchroma.token_version SET version = version + 1;
    RETURN NULL;
END
$$;

CREATE TRIGGER token_changed
AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF id, name, digest, tenant, databases, scope, expires_at, revoked_at
ON pgchroma.tokens FOR EACH STATEMENT EXECUTE FUNCTION pgchroma.token_changed();
