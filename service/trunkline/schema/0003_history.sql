-- One row per change of a trunk or of its numbers, written by the statement that makes the change.
-- It outlives the trunk. `trunk` is the row after the change without what seals its secrets.
CREATE TABLE trunk_revisions (
    account_id text COLLATE "C" NOT NULL,
    trunk_id   text COLLATE "C" NOT NULL,
    revision   bigint NOT NULL,
    changed_at timestamptz NOT NULL,
    token_id   text,
    request_id text,
    method     text,
    mask       text[] NOT NULL DEFAULT '{}',
    changed    text[] NOT NULL DEFAULT '{}',
    trunk      jsonb NOT NULL,
    numbers    jsonb,
    deleted    boolean NOT NULL DEFAULT false,

    PRIMARY KEY (account_id, trunk_id, revision)
);

CREATE FUNCTION trunk_snapshot(t jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN t - '{auth_password_sealed,auth_password_key_id,allow_codecs,disallow_codecs,changed}'::text[];

-- Gateways in place of others. One that keeps its address and port keeps its id and the time it joined;
-- one that comes with an id, since it is brought back as it was, has that. A function, and not inline:
-- the planner takes jsonb_array_elements for a hundred rows each, and would plan every update anew.
CREATE FUNCTION trunk_kept_gateways(stored jsonb, given jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (
        SELECT jsonb_agg((n.gateway -> 'new') || coalesce(
                 (SELECT jsonb_build_object('id', o.gateway -> 'id', 'created_at', o.gateway -> 'created_at')
                    FROM jsonb_array_elements(stored) AS o(gateway)
                   WHERE o.gateway -> 'gateway_address' = n.gateway -> 'gateway_address'
                     AND o.gateway -> 'port' IS NOT DISTINCT FROM n.gateway -> 'port'), '{}')
                 || (n.gateway - 'new')
               ORDER BY n.position)
          FROM jsonb_array_elements(given) WITH ORDINALITY AS n(gateway, position));

-- Changes that are committed, or are about to be, and have no place in the feed yet. The order of ids
-- is not the order of commits; for one trunk it is the order of its revisions, as its row is locked.
CREATE TABLE feed_pending (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id text COLLATE "C" NOT NULL,
    trunk_id   text COLLATE "C" NOT NULL,
    revision   bigint NOT NULL
);

-- Changes in the order in which watchers get them, numbered without a gap once they are committed.
CREATE TABLE feed (
    position    bigint PRIMARY KEY,
    account_id  text COLLATE "C" NOT NULL,
    trunk_id    text COLLATE "C" NOT NULL,
    revision    bigint NOT NULL,
    numbered_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX feed_account ON feed (account_id, position);

-- One row. `position` is the last one given, `floor` the last one forgotten.
CREATE TABLE feed_state (
    one_row  boolean PRIMARY KEY DEFAULT true CHECK (one_row),
    position bigint NOT NULL DEFAULT 0,
    floor    bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

INSERT INTO feed_state DEFAULT VALUES;

-- Calls with a request_id that were answered with success: what a retry is answered with, and a keyed
-- fingerprint of the request, as a plain hash would let a dump be searched for passwords.
CREATE TABLE requests (
    account_id  text COLLATE "C" NOT NULL,
    method      text COLLATE "C" NOT NULL,
    request_id  text COLLATE "C" NOT NULL,
    fingerprint bytea NOT NULL,
    key_id      text COLLATE "C" NOT NULL,
    answer      jsonb NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),

    CONSTRAINT requests_once PRIMARY KEY (account_id, method, request_id)
);

-- Claims a request for the length of a transaction: TL001 where a call with the same id is at work,
-- TL002 where one was answered. Volatile, so that it looks after it has the claim: what a statement sees
-- by itself may be older than the end of the call that held it before.
CREATE FUNCTION request_claimed(account text, of_method text, id text) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended(of_method || ' ' || account || ' ' || id, 0)) THEN
        RAISE EXCEPTION USING ERRCODE = 'TL001', MESSAGE = 'a call with this request_id is at work';
    END IF;
    IF EXISTS (SELECT FROM requests AS r
                WHERE r.account_id = account AND r.method = of_method AND r.request_id = id) THEN
        RAISE EXCEPTION USING ERRCODE = 'TL002', MESSAGE = 'a call with this request_id was answered';
    END IF;
    RETURN true;
END $$;

CREATE INDEX requests_created_at ON requests (created_at);

-- What was there before there was history begins with how it is now.
INSERT INTO trunk_revisions (account_id, trunk_id, revision, changed_at, trunk)
SELECT t.account_id, t.id, t.revision, t.updated_at, trunk_snapshot(to_jsonb(t)) FROM trunks AS t;

-- Carriers' addresses are on the trunks of very many accounts: with few values in the statistics, the
-- planner takes one that is on a single trunk for one that is on many.
ALTER INDEX trunks_gateway_keys ALTER COLUMN 1 SET STATISTICS 1000;
ALTER INDEX trunks_ip_keys ALTER COLUMN 1 SET STATISTICS 1000;
