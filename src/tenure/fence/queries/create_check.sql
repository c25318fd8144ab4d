-- The check that the triggers of one group's tables call: {fence} is the group's relation, {check} the function.
-- Its order is fixed: no fence (TN002), another server (TN004, R23), no credential (TN003), another credential (TN001).
-- FOR SHARE holds the fence still until this transaction ends, or waits for the raise that is under way (R18).
-- A function that only read the row would pass an old token under REPEATABLE READ.
CREATE OR REPLACE FUNCTION {check}() RETURNS trigger
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $tenure$
DECLARE
    fence {fence}%ROWTYPE;
    resource CONSTANT text := TG_ARGV[0];
    credential CONSTANT text := nullif(current_setting('tenure.credential_' || TG_ARGV[0], true), '');
BEGIN
    SELECT f.* INTO fence FROM {fence} AS f WHERE f.resource = TG_ARGV[0] FOR SHARE;
    IF NOT FOUND THEN
        PERFORM tenure.refuse('TN002', resource, credential, NULL,
            format('there is no fence for resource "%s"', resource), 'Run: tenure fence install');
    END IF;
    IF fence.timeline <> substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
        OR fence.server_start <> pg_postmaster_start_time()
    THEN
        PERFORM tenure.refuse('TN004', resource, credential, fence.token,
            format('the server changed under the fence of "%s": nobody may write until it is raised again', resource),
            'The leader proves its leadership and raises the fence with a new token.');
    END IF;
    IF credential IS NULL THEN
        PERFORM tenure.refuse('TN003', resource, credential, fence.token,
            format('table "%s" is fenced for "%s" and this transaction carries no credential', TG_TABLE_NAME, resource),
            format('In the same transaction: SELECT tenure.assert_leader(''%s'', CREDENTIAL)', resource));
    END IF;
    IF credential <> fence.token || '.' || fence.nonce THEN
        PERFORM tenure.refuse('TN001', resource, credential, fence.token,
            format('stale credential for "%s": token %s was sent, the fence holds %s', resource,
                coalesce(substring(credential FROM '^([0-9]{{1,16}})\.'), '(malformed)'), fence.token),
            'This writer no longer leads, or it never did.');
    END IF;
    IF TG_OP = 'INSERT' AND TG_ARGV[1] = 'rows' THEN
        IF EXISTS (SELECT FROM tenure_new AS n WHERE n.fencing_token IS DISTINCT FROM fence.token) THEN
            PERFORM tenure.refuse('TN001', resource, credential, fence.token,
                format('a row for "%s" carries another fencing_token than %s, which the fence holds', TG_TABLE_NAME,
                    fence.token), 'Write the token of the leadership into fencing_token.');
        END IF;
    END IF;
    RETURN NULL;
END
$tenure$;
REVOKE EXECUTE ON FUNCTION {check}() FROM PUBLIC;
