-- The product's version whose change has set the stock last; 0: none has. A change of an older version, which arrives
-- late or lost a race, must not replace it. The service's previous version neither reads nor writes the column.
ALTER TABLE inventory ADD COLUMN product_version bigint NOT NULL DEFAULT 0;

-- Set stock, one entry after another; entries of the same product keep their order. The products are sorted, so that two
-- calls cannot deadlock. An entry without a version is always applied, and leaves the product's version as it is; one
-- with a version only if it is newer. For each entry: the stock and the version that are then in force.
CREATE FUNCTION set_stock_many(
    products uuid[], wanted bigint[], versions bigint[], OUT quantities bigint[], OUT in_force bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
    current inventory;
BEGIN
    FOR entry IN 1..cardinality(products) LOOP
        INSERT INTO inventory AS i (product_id, quantity, product_version)
        VALUES (products[entry], wanted[entry], coalesce(versions[entry], 0))
        ON CONFLICT (product_id) DO UPDATE
        SET quantity = excluded.quantity, product_version = greatest(i.product_version, excluded.product_version)
        WHERE versions[entry] IS NULL OR i.product_version < versions[entry]
        RETURNING * INTO current;
        IF NOT FOUND THEN
            -- Locked by the statement above, although it was not changed.
            SELECT * INTO current FROM inventory WHERE product_id = products[entry];
        END IF;
        quantities := quantities || current.quantity;
        in_force := in_force || current.product_version;
    END LOOP;
END $$;
