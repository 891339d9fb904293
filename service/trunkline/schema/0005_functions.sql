-- Oldest schema version whose servers may go on: 0003.
-- The functions that updates call, in PL/pgSQL: one whose body is a query in SQL is prepared again by each
-- statement that calls it, and each update of an indexed column calls the first two. `|| '[]'` has a list
-- uncompressed once, and not for each of its items.
CREATE OR REPLACE FUNCTION trunk_gateway_keys(account_id text, gateways jsonb) RETURNS text[]
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    keys text[] := '{}';
BEGIN
    gateways := gateways || '[]';
    FOR i IN 0 .. jsonb_array_length(gateways) - 1 LOOP
        keys := keys || (account_id || ' ' || (gateways -> i ->> 'gateway_address'));
    END LOOP;
    RETURN keys;
END $$;

CREATE OR REPLACE FUNCTION trunk_ip_keys(account_id text, ip_identifiers jsonb) RETURNS text[]
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    keys text[] := '{}';
BEGIN
    ip_identifiers := ip_identifiers || '[]';
    FOR i IN 0 .. jsonb_array_length(ip_identifiers) - 1 LOOP
        keys := keys || (account_id || ' ' || (ip_identifiers -> i ->> 'ip_address'));
    END LOOP;
    RETURN keys;
END $$;

-- As in 0003: a gateway that keeps its address and port keeps its id and the time it joined; one that
-- comes with an id has that.
CREATE OR REPLACE FUNCTION trunk_kept_gateways(stored jsonb, given jsonb) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    kept jsonb := '[]';
    old jsonb;
    new jsonb;
    same jsonb;
BEGIN
    IF given IS NULL THEN
        RETURN NULL;
    END IF;
    stored := stored || '[]';
    given := given || '[]';
    FOR i IN 0 .. jsonb_array_length(given) - 1 LOOP
        new := given -> i;
        same := '{}';
        FOR j IN 0 .. coalesce(jsonb_array_length(stored), 0) - 1 LOOP
            old := stored -> j;
            IF old -> 'gateway_address' = new -> 'gateway_address'
               AND old -> 'port' IS NOT DISTINCT FROM new -> 'port' THEN
                same := jsonb_build_object('id', old -> 'id', 'created_at', old -> 'created_at');
                EXIT;
            END IF;
        END LOOP;
        kept := kept || jsonb_build_array((new -> 'new') || same || (new - 'new'));
    END LOOP;
    RETURN kept;
END $$;
