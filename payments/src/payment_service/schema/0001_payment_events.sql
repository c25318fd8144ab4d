-- One row is key, parameter hash, payment and event: whoever finds the key finds the whole answer (R28).
-- CACHE 1: with more, a session hands out event ids from its own reserve and they no longer follow one another.
CREATE TABLE payment_events (
    event_id        bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    payment_id      uuid        NOT NULL,
    node_id         text        NOT NULL,
    fencing_token   bigint      NOT NULL,
    term            bigint      NOT NULL,
    type            text        NOT NULL,
    amount          bigint      NOT NULL CHECK (amount > 0),
    currency        text        NOT NULL,
    debtor          text        NOT NULL,
    creditor        text        NOT NULL,
    reference       text        NOT NULL,
    client_id       text        NOT NULL,
    idempotency_key text,
    request_hash    bytea       NOT NULL,
    "timestamp"     timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Keys never expire. Later events of a payment carry none.
CREATE UNIQUE INDEX payment_events_key ON payment_events (client_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

CREATE INDEX payment_events_payment ON payment_events (payment_id);
