-- Workers hear of a changed token when the change is committed, rather than at their next look.

CREATE OR REPLACE FUNCTION pgchroma.token_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE pgchroma.token_version SET version = version + 1;
    PERFORM pg_notify('pgchroma_tokens', '');
    RETURN NULL;
END
$$;
