-- From when to when each node wrote under each token, by the database's own clock.
SELECT node_id, fencing_token, COUNT(*), MIN(timestamp), MAX(timestamp)
FROM payment_events
WHERE timestamp IS NOT NULL
GROUP BY node_id, fencing_token;
