CREATE TABLE products (
    id uuid PRIMARY KEY,
    -- "C": sort=name orders by code point, the same on every server.
    name text COLLATE "C" NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
    description text NOT NULL CHECK (char_length(description) <= 10000),
    price numeric(10, 2) NOT NULL CHECK (price >= 0),
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    image_url text CHECK (char_length(image_url) <= 2000),
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Key and product are one row and so one write: neither can exist without the other.
    idempotency_key text COLLATE "C" CHECK (char_length(idempotency_key) BETWEEN 1 AND 255),
    request_hash bytea CHECK ((request_hash IS NULL) = (idempotency_key IS NULL)),
    -- Stems, so that "lights" finds a light, and the words as they are, so that "the" is found too.
    -- Slashes are replaced by spaces: PostgreSQL would read "salt/pepper" as one token, a file path.
    search tsvector NOT NULL GENERATED ALWAYS AS (
        to_tsvector('english', translate(name || ' ' || description, '/', ' '))
        || to_tsvector('simple', translate(name || ' ' || description, '/', ' '))
    ) STORED
);

-- Each index serves one sort in both directions; the id makes the order total.
CREATE INDEX products_created_at ON products (created_at, id);
CREATE INDEX products_price ON products (price, id);
CREATE INDEX products_name ON products (name, id);
-- Without fastupdate: after many inserts the pending list makes searches slow, and the planner avoids the index.
CREATE INDEX products_search ON products USING gin (search) WITH (fastupdate = off);
CREATE UNIQUE INDEX products_idempotency_key ON products (idempotency_key) WHERE idempotency_key IS NOT NULL;

-- The number of products, maintained so that a page need not count the table. It is spread over several rows, chosen by
-- connection, so that writers rarely wait for each other; the sum is exact in every snapshot.
CREATE TABLE product_counts (shard integer PRIMARY KEY, n bigint NOT NULL) WITH (fillfactor = 50);
INSERT INTO product_counts SELECT shard, 0 FROM generate_series(0, 31) AS shard;

CREATE FUNCTION count_products() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        UPDATE product_counts SET n = 0;
    ELSE
        UPDATE product_counts
        SET n = n + (CASE TG_OP WHEN 'INSERT' THEN 1 ELSE -1 END) * (SELECT count(*) FROM changed)
        WHERE shard = pg_backend_pid() % 32;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER count_inserted AFTER INSERT ON products
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_products();
CREATE TRIGGER count_deleted AFTER DELETE ON products
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_products();
CREATE TRIGGER count_truncated AFTER TRUNCATE ON products
    FOR EACH STATEMENT EXECUTE FUNCTION count_products();
