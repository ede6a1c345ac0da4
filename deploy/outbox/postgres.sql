-- The transactional outbox: a consent change is written here in the transaction that changes the member's settings,
-- and reaches Kafka afterwards, by Debezium (debezium.json) or by consentry.producer.outbox.Relay.
--
-- Order: `position` is given out at the insert, and seen at the commit. Two transactions that change the same member
-- must not overlap between the two: lock the member's row (SELECT ... FOR UPDATE, or the UPDATE itself) before the insert.

CREATE TABLE IF NOT EXISTS consent_outbox (
    position      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id            uuid         NOT NULL UNIQUE,  -- the event_id: the same event is never written twice
    aggregatetype varchar(255) NOT NULL CHECK (aggregatetype = 'member-events'),  -- where it goes, and nowhere else
    aggregateid   varchar(64)  NOT NULL,         -- the member: the Kafka key, exactly these characters
    type          varchar(255) NOT NULL,         -- which record: consentry.ConsentChanged and so on
    payload       bytea        NOT NULL          -- the Kafka value: framed Avro, as row_for made it
);
