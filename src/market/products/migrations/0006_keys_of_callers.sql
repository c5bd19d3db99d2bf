-- Idempotency keys belong to the caller. A row has the caller and its key; rows of the running version have neither.
ALTER TABLE products ADD COLUMN caller text, ADD COLUMN caller_key text COLLATE "C";

-- The running version looks a key up in idempotency_key, which only one row has, whoever the caller is. If another
-- caller's row has the key there, idempotency_key has a value that no client can send: it begins with a space. When the
-- row with the key is deleted, the key passes on to such a row, so that the running version finds it and does not create
-- that product again.
CREATE FUNCTION pass_key_on() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE products SET idempotency_key = OLD.idempotency_key
    WHERE id = (SELECT id FROM products WHERE caller_key = OLD.idempotency_key ORDER BY id LIMIT 1);
    RETURN NULL;
EXCEPTION WHEN unique_violation THEN
    -- A new row has the key.
    RETURN NULL;
END
$$;
CREATE TRIGGER pass_key_on AFTER DELETE ON products
    FOR EACH ROW WHEN (OLD.idempotency_key IS NOT NULL AND OLD.idempotency_key NOT LIKE ' %')
    EXECUTE FUNCTION pass_key_on();
