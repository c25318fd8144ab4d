SELECT f.resource, f.elector_id, f.generation, f.lineage, f.token, f.version, f.holder, {nonce} AS nonce,
       f.timeline, to_char(f.server_start AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS server_start,
       substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) AS live_timeline,
       to_char(pg_postmaster_start_time() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS live_server_start,
       current_setting('fsync') = 'on' AS live_fsync
FROM {fence} AS f
WHERE f.resource = %(resource)s
