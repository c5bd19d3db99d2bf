-- concurrently
DROP INDEX CONCURRENTLY IF EXISTS products_caller_key;

-- Beside products_idempotency_key, which serves the running version.
CREATE UNIQUE INDEX CONCURRENTLY products_caller_key ON products (caller_key, caller) WHERE caller_key IS NOT NULL;
