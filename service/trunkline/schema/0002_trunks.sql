-- A column per field of siptrunk.v1.SipTrunk. The fill factor leaves room in each page for the next
-- version of a row, and no index is on a column that changes often, so that updates stay HOT.
CREATE TABLE trunks (
    account_id                    text COLLATE "C" NOT NULL REFERENCES accounts,
    id                            text COLLATE "C" NOT NULL,
    name                          text COLLATE "C" NOT NULL,
    provider                      text COLLATE "C" NOT NULL,
    description                   text,
    auth_type                     text NOT NULL,
    auth_username                 text,
    auth_password_sealed          bytea,
    auth_password_key_id          text COLLATE "C",
    auth_password_changed_at      timestamptz,
    gateways                      jsonb NOT NULL,
    ip_identifiers                jsonb NOT NULL DEFAULT '[]',
    phone_number_count            integer NOT NULL DEFAULT 0,
    allow                         text NOT NULL DEFAULT 'ulaw,alaw',
    allow_codecs                  text[] NOT NULL DEFAULT '{ulaw,alaw}',
    disallow                      text NOT NULL DEFAULT 'all',
    disallow_codecs               text[] NOT NULL DEFAULT '{}',
    transport                     text NOT NULL DEFAULT 'UDP',
    media_encryption              text NOT NULL DEFAULT 'NO',
    media_encryption_optimistic   boolean NOT NULL DEFAULT false,
    direct_media                  boolean NOT NULL DEFAULT false,
    rtp_symmetric                 boolean NOT NULL DEFAULT true,
    force_rport                   boolean NOT NULL DEFAULT true,
    ice_support                   boolean NOT NULL DEFAULT false,
    qualify_frequency             integer NOT NULL DEFAULT 60,
    inbound_enabled               boolean NOT NULL DEFAULT false,
    outbound_leading_plus_enabled boolean NOT NULL DEFAULT true,
    is_active                     boolean NOT NULL DEFAULT true,
    revision                      bigint NOT NULL DEFAULT 1,
    created_at                    timestamptz NOT NULL,
    updated_at                    timestamptz NOT NULL,

    PRIMARY KEY (account_id, id),
    CONSTRAINT trunks_name_unique UNIQUE (account_id, name),

    -- What each field may be; the service says so first, and better.
    CONSTRAINT trunks_auth_type CHECK (auth_type IN ('USERPASS', 'IP_BASED')),
    CONSTRAINT trunks_transport CHECK (transport IN ('UDP', 'TCP', 'TLS')),
    CONSTRAINT trunks_media_encryption CHECK (media_encryption IN ('NO', 'SDES')),
    CONSTRAINT trunks_qualify_frequency CHECK (qualify_frequency BETWEEN 0 AND 86400),
    CONSTRAINT trunks_gateways CHECK (jsonb_array_length(gateways) BETWEEN 1 AND 32),
    CONSTRAINT trunks_ip_identifiers CHECK (jsonb_array_length(ip_identifiers) <= 256),
    CONSTRAINT trunks_phone_number_count CHECK (phone_number_count BETWEEN 0 AND 100000),
    CONSTRAINT trunks_secret_has_key CHECK
        ((auth_password_sealed IS NULL) = (auth_password_key_id IS NULL)),

    -- Rules over two fields: only the database sees both when two callers change one each.
    CONSTRAINT trunks_sdes_needs_tls CHECK (media_encryption <> 'SDES' OR transport = 'TLS'),
    CONSTRAINT trunks_ip_based_needs_identifiers CHECK
        (auth_type <> 'IP_BASED' OR jsonb_array_length(ip_identifiers) > 0),
    CONSTRAINT trunks_userpass_needs_credentials CHECK
        (auth_type <> 'USERPASS' OR (auth_username IS NOT NULL AND auth_password_sealed IS NOT NULL)),
    CONSTRAINT trunks_ip_based_has_no_credentials CHECK
        (auth_type <> 'IP_BASED' OR (auth_username IS NULL AND auth_password_sealed IS NULL)),
    CONSTRAINT trunks_codec_left CHECK (NOT allow_codecs <@ disallow_codecs)
) WITH (fillfactor = 70);

-- What `gateway_address=` and `source_ip=` look up. The account is part of each key: the ranges of a
-- large carrier are on the trunks of every account, and a look-up must not read theirs.
CREATE FUNCTION trunk_gateway_keys(account_id text, gateways jsonb) RETURNS text[]
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN ARRAY(SELECT account_id || ' ' || (g ->> 'gateway_address') FROM jsonb_array_elements(gateways) AS e(g));

CREATE FUNCTION trunk_ip_keys(account_id text, ip_identifiers jsonb) RETURNS text[]
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN ARRAY(SELECT account_id || ' ' || (i ->> 'ip_address') FROM jsonb_array_elements(ip_identifiers) AS e(i));

-- fastupdate off: a look-up never has to walk a list of pending entries.
CREATE INDEX trunks_gateway_keys ON trunks USING gin (trunk_gateway_keys(account_id, gateways)) WITH (fastupdate = off);
CREATE INDEX trunks_ip_keys ON trunks USING gin (trunk_ip_keys(account_id, ip_identifiers)) WITH (fastupdate = off);
CREATE INDEX trunks_created_at ON trunks (account_id, created_at, id);
CREATE INDEX trunks_provider ON trunks (account_id, provider, id);
CREATE INDEX trunks_is_active ON trunks (account_id, is_active, id);
-- Which keys are in use, read when a server starts.
CREATE INDEX trunks_secret_key ON trunks (auth_password_key_id) WHERE auth_password_key_id IS NOT NULL;

CREATE TABLE phone_numbers (
    account_id   text COLLATE "C" NOT NULL,
    id           text COLLATE "C" NOT NULL,
    trunk_id     text COLLATE "C" NOT NULL,
    phone_number text NOT NULL,
    -- The number without its `+`: what makes two numbers the same one.
    digits       text COLLATE "C" NOT NULL GENERATED ALWAYS AS (ltrim(phone_number, '+')) STORED,
    name         text,
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL,

    PRIMARY KEY (account_id, id),
    CONSTRAINT phone_numbers_number_unique UNIQUE (account_id, digits),
    CONSTRAINT phone_numbers_trunk FOREIGN KEY (account_id, trunk_id) REFERENCES trunks ON DELETE CASCADE,
    CONSTRAINT phone_numbers_form CHECK (phone_number ~ '^\+?[0-9]{3,15}$')
);

CREATE INDEX phone_numbers_trunk_order ON phone_numbers (account_id, trunk_id, id);
