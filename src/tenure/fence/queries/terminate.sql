-- Ends the sessions that keep a raiser from the fence, and says who they were. A prepared transaction shows as
-- pid 0 and cannot be ended. Other raisers are spared at first: they take milliseconds, unless they are stuck.
SELECT b.pid, a.usename, a.application_name, host(a.client_addr) AS address, a.state, pg_terminate_backend(b.pid)
FROM unnest(pg_blocking_pids(%(raiser)s)) AS b (pid)
LEFT JOIN pg_stat_activity AS a ON a.pid = b.pid
WHERE b.pid > 0 AND NOT (%(spare_raisers)s AND coalesce(a.application_name, '') = %(raisers)s)
