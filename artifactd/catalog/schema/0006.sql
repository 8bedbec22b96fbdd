-- What webhooks are told: a row for each event and webhook.  It stays after its delivery, for replay.
CREATE TABLE webhook_event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- ascends in the order of the commits of all processes
    webhook TEXT NOT NULL,                 -- its name in the settings
    subject TEXT NOT NULL,                 -- an image's canonical name, or a repository's
    message TEXT NOT NULL,                 -- the id that receivers see, the same at each delivery
    at REAL NOT NULL,                      -- seconds since the epoch
    event TEXT NOT NULL,                   -- JSON
    delivered_at REAL                      -- NULL: it waits
) STRICT;

CREATE INDEX webhook_event_of ON webhook_event (webhook, id);
CREATE INDEX webhook_event_waiting ON webhook_event (webhook, subject, id) WHERE delivered_at IS NULL;
CREATE INDEX webhook_event_delivered ON webhook_event (webhook, id) WHERE delivered_at IS NOT NULL;

-- The subjects that have events waiting: those of one subject are delivered one after the other.
CREATE TABLE webhook_queue (
    webhook TEXT NOT NULL,
    subject TEXT NOT NULL,
    due_at REAL NOT NULL,                  -- of the next attempt
    attempts INTEGER NOT NULL DEFAULT 0,   -- that have failed since the last delivery
    error TEXT NOT NULL DEFAULT '',        -- of the last of them
    PRIMARY KEY (webhook, subject)
) STRICT, WITHOUT ROWID;

CREATE INDEX webhook_queue_due ON webhook_queue (webhook, due_at);

-- How deliveries to each webhook went.
CREATE TABLE webhook (
    name TEXT PRIMARY KEY,
    delivered INTEGER NOT NULL DEFAULT 0,
    delivered_at REAL,
    failed_at REAL,                        -- of the last attempt that failed
    error TEXT NOT NULL DEFAULT '',
    dropped INTEGER NOT NULL DEFAULT 0,    -- events that were never delivered, and are gone
    dropped_at REAL
) STRICT, WITHOUT ROWID;
