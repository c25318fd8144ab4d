-- The fence of one group of resources that move together: {fence} is its relation.
CREATE TABLE {fence} (
    resource     text PRIMARY KEY,
    elector_id   text,
    generation   bigint NOT NULL DEFAULT 0 CHECK (generation >= 0),
    lineage      text,
    token        bigint NOT NULL DEFAULT 0 CHECK (token >= 0 AND token < 9007199254740992),
    nonce        text NOT NULL,
    version      bigint NOT NULL DEFAULT 1,
    timeline     text NOT NULL,
    server_start timestamptz NOT NULL,
    holder       text,
    raised_at    timestamptz
);

CREATE TRIGGER tenure_guard_row BEFORE UPDATE OR DELETE ON {fence}
    FOR EACH ROW EXECUTE FUNCTION tenure.guard_fence();
CREATE TRIGGER tenure_guard_truncate BEFORE TRUNCATE ON {fence}
    FOR EACH STATEMENT EXECUTE FUNCTION tenure.guard_fence();
ALTER TABLE {fence} ENABLE ALWAYS TRIGGER tenure_guard_row;
ALTER TABLE {fence} ENABLE ALWAYS TRIGGER tenure_guard_truncate;
