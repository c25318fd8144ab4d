SELECT node_id, COUNT(*), MAX(timestamp)
FROM payment_events
GROUP BY node_id
ORDER BY MAX(timestamp) DESC;
