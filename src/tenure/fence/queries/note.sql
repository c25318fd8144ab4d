INSERT INTO tenure.ledger (resource, action, from_token, to_token, who, why)
VALUES (%(resource)s, %(action)s, %(from_token)s, %(to_token)s, %(who)s, %(why)s)
