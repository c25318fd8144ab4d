-- The schema of the fence: what every group of resources shares.
-- One relation per group (tenure.fence_<group>) and its check function are made from queries/create_fence.sql and queries/create_check.sql.

CREATE TABLE tenure.resource (
    name        text PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_]{0,39}$'),
    fence_group text NOT NULL CHECK (fence_group ~ '^[a-z][a-z0-9_]{0,39}$')
);
COMMENT ON TABLE tenure.resource IS 'Fenced resources and the group whose relation (tenure.fence_<group>) holds each row';

-- Append-only. from_token is what the fence held, to_token what was asked for; never a nonce.
CREATE TABLE tenure.ledger (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    resource   text NOT NULL,
    action     text NOT NULL,
    from_token bigint,
    to_token   bigint,
    who        text NOT NULL,
    why        text NOT NULL
);
CREATE INDEX ledger_resource ON tenure.ledger (resource, id);

CREATE FUNCTION tenure.guard_ledger() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = 'the ledger of the fence is append-only';
END
$$;

CREATE TRIGGER tenure_guard BEFORE UPDATE OR DELETE OR TRUNCATE ON tenure.ledger
    FOR EACH STATEMENT EXECUTE FUNCTION tenure.guard_ledger();
ALTER TABLE tenure.ledger ENABLE ALWAYS TRIGGER tenure_guard;

-- The fence itself only moves forward (R24): whoever holds the rights to change it, a superuser included.
CREATE FUNCTION tenure.guard_fence() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP <> 'UPDATE' THEN
        RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = 'a fence row is never removed',
            HINT = 'Use: tenure fence rebase';
    END IF;
    IF NEW.resource <> OLD.resource THEN
        RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = 'a fence row keeps its resource';
    END IF;
    IF NEW.token < OLD.token OR NEW.generation < OLD.generation OR NEW.version <= OLD.version THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001',
            MESSAGE = format('the fence of %I only moves forward: token %s to %s, generation %s to %s, version %s to %s',
                OLD.resource, OLD.token, NEW.token, OLD.generation, NEW.generation, OLD.version, NEW.version);
    END IF;
    RETURN NEW;
END
$$;

-- Every refusal of a write goes through here, so that all speak with one voice. The nonce is never shown.
CREATE FUNCTION tenure.refuse(code text, resource text, credential text, held bigint, message text, hint text)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = code,
        MESSAGE = message,
        HINT = hint,
        DETAIL = json_build_object(
            'resource', resource,
            'sent', substring(credential FROM '^([0-9]{1,16})\.')::bigint,
            'held', held);
END
$$;
REVOKE EXECUTE ON FUNCTION tenure.refuse(text, text, text, bigint, text, text) FROM PUBLIC;

-- Sets the credential for the transaction around it. It checks nothing: the triggers do, in the writing statement.
-- A plain SQL function without settings of its own, so that the planner can inline it in the hot statement.
CREATE FUNCTION tenure.assert_leader(resource text, credential text) RETURNS boolean
LANGUAGE sql VOLATILE
AS $$
    SELECT pg_catalog.set_config(pg_catalog.concat('tenure.credential_', resource), credential, true) IS NOT NULL
$$;
COMMENT ON FUNCTION tenure.assert_leader(text, text) IS
    'Carries the leader''s credential (token and nonce) for a resource to the end of this transaction';

-- The catalog is the registry of fenced tables: it cannot go stale.
CREATE VIEW tenure.fenced_table AS
    SELECT DISTINCT t.tgrelid::regclass AS relation, split_part(encode(t.tgargs, 'escape'), '\000', 1) AS resource
    FROM pg_catalog.pg_trigger t
    WHERE t.tgname LIKE 'tenure\_fence\_%' AND NOT t.tgisinternal;

-- USAGE lets any role call assert_leader; tables and the nonce stay with the owner.
GRANT USAGE ON SCHEMA tenure TO PUBLIC;
