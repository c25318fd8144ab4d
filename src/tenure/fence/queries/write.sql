-- Timeline and server start are those of the server that runs this very statement.
UPDATE {fence}
SET elector_id = %(elector_id)s, generation = %(generation)s, lineage = %(lineage)s, token = %(token)s,
    nonce = %(nonce)s, version = %(version)s, holder = %(holder)s, raised_at = clock_timestamp(),
    timeline = substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), server_start = pg_postmaster_start_time()
WHERE resource = %(resource)s
