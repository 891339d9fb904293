-- Who may call. Keys compare bytewise, so that their order is the same everywhere.
CREATE TABLE accounts (
    id         text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$'),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE tokens (
    id         text COLLATE "C" PRIMARY KEY,
    account_id text COLLATE "C" NOT NULL REFERENCES accounts,
    name       text NOT NULL,
    sha256     bytea NOT NULL CHECK (octet_length(sha256) = 32),
    scopes     text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);

CREATE INDEX tokens_account ON tokens (account_id, id);

-- One sealed known value per key, so that a wrong key shows when a server starts.
CREATE TABLE secret_checks (
    key_id text COLLATE "C" PRIMARY KEY,
    sealed bytea NOT NULL
);
