-- What decides whether a commit that was acknowledged survives a crash or a failover. Needs no special right.
SELECT current_setting('fsync')::boolean AS fsync,
       current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('max_prepared_transactions')::integer AS prepared_transactions,
       (SELECT count(*) FROM pg_stat_replication) AS standbys,
       current_setting('synchronous_standby_names') AS synchronous_standbys
