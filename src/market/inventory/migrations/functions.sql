-- version 2
-- The functions in their current form. A function that pods of the previous version call keeps its parameters, and
-- returns what they understand. The numbered files contain earlier forms.

-- All functions lock the reservation's (or movement's) own row first and then the stock rows in order of product_id,
-- each in a statement of its own: in READ COMMITTED a statement sees what was committed before it began, so a
-- transaction that waited for another one's row sees what that one wrote.

-- Reserve all lines of one reservation, or none. The lines are sorted by product, one per product.
-- outcome: 1 reserved, 2 reserved before, 3 not enough stock, 4 reserved before with other lines, 5 cancelled,
-- 0 the row was deleted meanwhile, try again. With outcome 3, the position (from 1) and the available stock of each
-- line that is short.
CREATE OR REPLACE FUNCTION reserve(
    reservation uuid, products uuid[], wanted int[], OUT outcome int, OUT short_lines int[], OUT short_left bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
    known reservations;
    available bigint;
BEGIN
    INSERT INTO reservations (id, product_ids, quantities) VALUES (reservation, products, wanted) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        SELECT * INTO known FROM reservations WHERE id = reservation;
        outcome := CASE
            WHEN NOT FOUND THEN 0
            WHEN known.status = 'cancelled' THEN 5
            WHEN known.product_ids = products AND known.quantities = wanted THEN 2
            ELSE 4
        END;
        RETURN;
    END IF;
    FOR line IN 1..cardinality(products) LOOP
        UPDATE inventory SET quantity = quantity - wanted[line] WHERE product_id = products[line] AND quantity >= wanted[line];
        CONTINUE WHEN FOUND;
        -- Read again under a lock: units may have been released since, and the reported stock must be the one that decided.
        SELECT quantity INTO available FROM inventory WHERE product_id = products[line] FOR UPDATE;
        IF available >= wanted[line] THEN
            UPDATE inventory SET quantity = quantity - wanted[line] WHERE product_id = products[line];
        ELSE
            short_lines := short_lines || line;
            short_left := short_left || coalesce(available, 0);
        END IF;
    END LOOP;
    outcome := 1;
    IF short_lines IS NOT NULL THEN
        -- Undo the lines that were taken: their rows are locked already.
        FOR line IN 1..cardinality(products) LOOP
            IF line <> ALL (short_lines) THEN
                UPDATE inventory SET quantity = quantity + wanted[line] WHERE product_id = products[line];
            END IF;
        END LOOP;
        DELETE FROM reservations WHERE id = reservation;
        outcome := 3;
    END IF;
END $$;

-- Decide many reservations one after another, each all or nothing on its own. The ids are distinct. The lines of all
-- reservations are concatenated, those of reservation n are firsts[n] to lasts[n]; `products` are the distinct products,
-- sorted, and line_indexes is the position of each line's product in them. Outcomes as in reserve(); short_lines are
-- positions in the concatenated lines.
CREATE OR REPLACE FUNCTION reserve_many(
    ids uuid[], firsts int[], lasts int[], line_products uuid[], wanted int[], line_indexes int[], products uuid[],
    OUT outcomes int[], OUT short_lines int[], OUT short_left bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
    -- NULL where there is no row: a row inserted meanwhile is not locked here and must not be overwritten.
    stock bigint[] := array_fill(NULL::bigint, ARRAY[cardinality(products)]);
    fresh uuid[];
    short uuid[];
    enough boolean;
    row record;
BEGIN
    outcomes := array_fill(1, ARRAY[cardinality(ids)]);
    WITH made AS (
        INSERT INTO reservations (id, product_ids, quantities)
        SELECT id, line_products[first:last], wanted[first:last]
        FROM unnest(ids, firsts, lasts) AS o (id, first, last) ORDER BY id
        ON CONFLICT DO NOTHING RETURNING id
    ) SELECT array_agg(id) INTO fresh FROM made;
    IF cardinality(fresh) IS DISTINCT FROM cardinality(ids) THEN
        FOR row IN
            SELECT o.n, r.status, r.product_ids = line_products[first:last] AND r.quantities = wanted[first:last] AS same
            FROM unnest(ids, firsts, lasts) WITH ORDINALITY AS o (id, first, last, n) LEFT JOIN reservations r ON r.id = o.id
            WHERE o.id <> ALL (coalesce(fresh, '{}'))
        LOOP
            outcomes[row.n] := CASE WHEN row.status IS NULL THEN 0 WHEN row.status = 'cancelled' THEN 5 WHEN row.same THEN 2 ELSE 4 END;
        END LOOP;
    END IF;
    IF fresh IS NULL THEN RETURN; END IF;
    FOR row IN
        SELECT u.n, i.quantity FROM unnest(products) WITH ORDINALITY AS u (id, n) JOIN inventory i ON i.product_id = u.id
        ORDER BY i.product_id FOR UPDATE OF i
    LOOP
        stock[row.n] := row.quantity;
    END LOOP;
    FOR o IN 1..cardinality(ids) LOOP
        CONTINUE WHEN outcomes[o] <> 1;
        enough := true;
        FOR line IN firsts[o]..lasts[o] LOOP
            IF coalesce(stock[line_indexes[line]], 0) < wanted[line] THEN
                enough := false;
                short_lines := short_lines || line;
                short_left := short_left || coalesce(stock[line_indexes[line]], 0);
            END IF;
        END LOOP;
        IF enough THEN
            FOR line IN firsts[o]..lasts[o] LOOP
                stock[line_indexes[line]] := stock[line_indexes[line]] - wanted[line];
            END LOOP;
        ELSE
            outcomes[o] := 3;
            short := short || ids[o];
        END IF;
    END LOOP;
    UPDATE inventory i SET quantity = u.quantity FROM unnest(products, stock) AS u (id, quantity)
    WHERE i.product_id = u.id AND i.quantity <> u.quantity;
    IF short IS NOT NULL THEN
        DELETE FROM reservations WHERE id = ANY (short);
    END IF;
END $$;

-- Return the units of the reservations to stock; store an unknown id as cancelled. The ids are distinct.
-- released: reservations whose units were returned; gone: rows that were deleted meanwhile, try again.
CREATE OR REPLACE FUNCTION cancel_many(ids uuid[], OUT released uuid[], OUT gone uuid[]) LANGUAGE plpgsql AS $$
DECLARE
    fresh uuid[];
    held uuid;
BEGIN
    WITH made AS (
        INSERT INTO reservations (id, status, product_ids, quantities, cancelled_at)
        SELECT id, 'cancelled', '{}', '{}', now() FROM unnest(ids) AS o (id) ORDER BY id
        ON CONFLICT DO NOTHING RETURNING id
    ) SELECT array_agg(id) INTO fresh FROM made;
    IF cardinality(fresh) = cardinality(ids) THEN RETURN; END IF;
    FOR held IN SELECT id FROM reservations WHERE id = ANY (ids) AND status = 'reserved' ORDER BY id FOR UPDATE LOOP
        released := released || held;
    END LOOP;
    SELECT array_agg(o.id) INTO gone FROM unnest(ids) AS o (id) WHERE NOT EXISTS (SELECT FROM reservations r WHERE r.id = o.id);
    IF released IS NULL THEN RETURN; END IF;
    UPDATE reservations SET status = 'cancelled', cancelled_at = now() WHERE id = ANY (released);
    PERFORM 1 FROM inventory
    WHERE product_id IN (SELECT unnest(product_ids) FROM reservations WHERE id = ANY (released)) ORDER BY product_id FOR UPDATE;
    UPDATE inventory i SET quantity = i.quantity + back.quantity
    FROM (
        SELECT l.product_id, sum(l.quantity) AS quantity
        FROM reservations r, unnest(r.product_ids, r.quantities) AS l (product_id, quantity)
        WHERE r.id = ANY (released) GROUP BY l.product_id
    ) AS back
    WHERE i.product_id = back.product_id;
END $$;

-- Book a delivery or a loss. outcome: 1 booked, 2 booked before, 3 would leave the range 0..most, 4 booked before with
-- another product or delta, 0 try again. `available` is the stock now.
CREATE OR REPLACE FUNCTION add_stock(movement uuid, product uuid, change int, most bigint, OUT outcome int, OUT available bigint)
LANGUAGE plpgsql AS $$
DECLARE
    known movements;
BEGIN
    INSERT INTO movements (id, product_id, delta) VALUES (movement, product, change) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        SELECT * INTO known FROM movements WHERE id = movement;
        outcome := CASE WHEN NOT FOUND THEN 0 WHEN known.product_id = product AND known.delta = change THEN 2 ELSE 4 END;
        SELECT quantity INTO available FROM inventory WHERE product_id = product;
        RETURN;
    END IF;
    IF change > 0 THEN
        INSERT INTO inventory (product_id, quantity) VALUES (product, 0) ON CONFLICT DO NOTHING;
    END IF;
    UPDATE inventory SET quantity = quantity + change
    WHERE product_id = product AND quantity + change >= 0 AND (change < 0 OR quantity + change <= most)
    RETURNING quantity INTO available;
    outcome := 1;
    IF NOT FOUND THEN
        DELETE FROM movements WHERE id = movement;
        SELECT coalesce((SELECT quantity FROM inventory WHERE product_id = product), 0) INTO available;
        outcome := 3;
    END IF;
END $$;

-- Add the units of a delivery, once for each id, under the product's version that it belongs to. Version NULL: only check.
-- outcome: 1 added, 2 added before, 3 would make the stock larger than `most`, 4 added before with another quantity,
-- 6 not added, because the stock of a newer version is in force; its id stays free. `available` is the stock now,
-- in_force the version that it belongs to.
CREATE OR REPLACE FUNCTION add_delivery(
    delivery uuid, product uuid, units int, version bigint, most bigint,
    OUT outcome int, OUT available bigint, OUT in_force bigint
) LANGUAGE plpgsql AS $$
DECLARE
    stock_version bigint;
    known int;
BEGIN
    IF version IS NOT NULL THEN
        INSERT INTO inventory (product_id, quantity) VALUES (product, 0) ON CONFLICT DO NOTHING;
        -- Every delivery of the product takes this lock, and so does every SetStock. The statements below see what
        -- those before have committed.
        PERFORM 1 FROM inventory WHERE product_id = product FOR UPDATE;
    END IF;
    SELECT i.quantity, i.product_version, greatest(i.product_version, i.delivery_version)
    INTO available, stock_version, in_force FROM inventory i WHERE i.product_id = product;
    IF NOT FOUND THEN
        available := 0;
        stock_version := 0;
        in_force := 0;
    END IF;
    SELECT d.quantity INTO known FROM deliveries d WHERE d.product_id = product AND d.id = delivery;
    outcome := CASE
        WHEN known = units THEN 2
        WHEN known IS NOT NULL THEN 4
        WHEN version < stock_version THEN 6
        WHEN available + units > most THEN 3
        ELSE 1
    END;
    IF outcome = 1 AND version IS NOT NULL THEN
        INSERT INTO deliveries (product_id, id, quantity, product_version) VALUES (product, delivery, units, version);
        UPDATE inventory i SET quantity = i.quantity + units, delivery_version = greatest(i.delivery_version, version)
        WHERE i.product_id = product
        RETURNING i.quantity, greatest(i.product_version, i.delivery_version) INTO available, in_force;
    END IF;
END $$;

-- Set stock, one entry after another; entries of the same product keep their order. The products are sorted, so that two
-- calls cannot deadlock. An entry without a version is always applied, and leaves the product's version as it is; one
-- with a version only if it is newer than the version that has set the stock. It keeps the units of deliveries of later
-- versions, which have arrived before it. For each entry: the stock and the version that are then in force, and whether
-- the entry was applied.
CREATE OR REPLACE FUNCTION write_stock_many(
    products uuid[], wanted bigint[], versions bigint[],
    OUT quantities bigint[], OUT in_force bigint[], OUT applied boolean[]
) LANGUAGE plpgsql AS $$
DECLARE
    stock bigint;
    stock_version bigint;
    last_delivery bigint;
    is_applied boolean;
BEGIN
    FOR entry IN 1..cardinality(products) LOOP
        INSERT INTO inventory AS i (product_id, quantity, product_version)
        VALUES (products[entry], wanted[entry], coalesce(versions[entry], 0))
        ON CONFLICT (product_id) DO UPDATE
        SET quantity = excluded.quantity, product_version = greatest(i.product_version, excluded.product_version)
        WHERE versions[entry] IS NULL OR i.product_version < versions[entry]
        RETURNING i.quantity, i.product_version, i.delivery_version INTO stock, stock_version, last_delivery;
        is_applied := FOUND;
        IF NOT is_applied THEN
            -- Locked by the statement above, although it was not changed.
            SELECT i.quantity, i.product_version, i.delivery_version INTO stock, stock_version, last_delivery
            FROM inventory i WHERE i.product_id = products[entry];
        ELSIF last_delivery > versions[entry] THEN
            -- A statement of its own: it sees the deliveries that were committed before the row was locked.
            UPDATE inventory i SET quantity = i.quantity + (
                SELECT coalesce(sum(d.quantity), 0) FROM deliveries d
                WHERE d.product_id = products[entry] AND d.product_version > versions[entry]
            )
            WHERE i.product_id = products[entry] RETURNING i.quantity INTO stock;
        END IF;
        quantities := quantities || stock;
        in_force := in_force || greatest(stock_version, last_delivery);
        applied := applied || is_applied;
    END LOOP;
END $$;

-- What pods of the previous version call.
CREATE OR REPLACE FUNCTION set_stock_many(
    products uuid[], wanted bigint[], versions bigint[], OUT quantities bigint[], OUT in_force bigint[]
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT w.quantities, w.in_force INTO quantities, in_force FROM write_stock_many(products, wanted, versions) AS w;
END $$;
