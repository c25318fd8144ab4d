-- A row that was lost by force comes back with the highest token that the ledger knows: a token never goes back (G4).
INSERT INTO {fence} (resource, token, nonce, timeline, server_start)
SELECT %(resource)s,
       (SELECT coalesce(max(l.to_token), 0) FROM tenure.ledger AS l
        WHERE l.resource = %(resource)s AND l.action = 'raise'),
       %(nonce)s, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), pg_postmaster_start_time()
ON CONFLICT (resource) DO NOTHING
