SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS at, action, from_token, to_token, who, why
FROM tenure.ledger
WHERE resource = %(resource)s
ORDER BY id DESC
LIMIT %(limit)s
