-- What is free to sell, who holds what, and what was delivered or lost.

-- Room in each page, so that an update of a hot row stays in its page and touches no index.
CREATE TABLE inventory (
    product_id uuid PRIMARY KEY,
    -- Free to sell now. Wider than the 0..2147483647 that can be set: what a cancelled reservation gives back
    -- after a stock-take must go somewhere.
    quantity bigint NOT NULL CHECK (quantity >= 0)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

-- The lines are two arrays, sorted by product and merged: one row per reservation instead of one per line,
-- compared with a repeat's lines by `=`. A cancelled reservation keeps its lines; an id that was cancelled
-- before it was ever reserved has none.
CREATE TABLE reservations (
    id uuid PRIMARY KEY,
    status text NOT NULL DEFAULT 'reserved' CHECK (status IN ('reserved', 'cancelled')),
    product_ids uuid[] NOT NULL,
    quantities int[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    cancelled_at timestamptz,
    CHECK ((status = 'cancelled') = (cancelled_at IS NOT NULL)),
    CHECK (cardinality(product_ids) = cardinality(quantities))
);

-- For the retention of cancelled reservations alone.
CREATE INDEX reservations_cancelled_at ON reservations (cancelled_at) WHERE status = 'cancelled';

CREATE TABLE movements (
    id uuid PRIMARY KEY,
    product_id uuid NOT NULL,
    delta int NOT NULL CHECK (delta <> 0),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- All functions take the reservation's (or movement's) own row first and then the stock rows in order of
-- product_id, each in a statement of its own: in READ COMMITTED a statement sees what was committed before it
-- began, so whoever waited for the other's row sees what the other did.

-- Takes all lines of one reservation, or none. `lines` are sorted by product and merged.
-- outcome: 1 reserved, 2 was reserved before, 3 short, 4 reserved with other lines, 5 cancelled,
-- 0 the row went away meanwhile: ask again. When short, for each short line its position (from 1) and what is left.
CREATE FUNCTION reserve(
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
        -- Looks again under a lock: goods may have come back since, and what is said to be left must be what decided.
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
        -- Gives back what was taken: these rows are locked already.
        FOR line IN 1..cardinality(products) LOOP
            IF line <> ALL (short_lines) THEN
                UPDATE inventory SET quantity = quantity + wanted[line] WHERE product_id = products[line];
            END IF;
        END LOOP;
        DELETE FROM reservations WHERE id = reservation;
        outcome := 3;
    END IF;
END $$;

-- Many reservations, decided in turn, each all or nothing on its own. The ids are distinct. The lines of all
-- stand one after another, those of reservation n from firsts[n] to lasts[n]; `products` are the distinct ones,
-- sorted, and line_indexes says which of them each line means. Outcomes as of reserve(); short_lines count over the
-- lines of all.
CREATE FUNCTION reserve_many(
    ids uuid[], firsts int[], lasts int[], line_products uuid[], wanted int[], line_indexes int[], products uuid[],
    OUT outcomes int[], OUT short_lines int[], OUT short_left bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
    -- NULL where there is no row: one that is made meanwhile is not ours to write.
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

-- Gives back what the reservations hold; remembers an id never seen as cancelled. The ids are distinct.
-- released: those that something was given back for; gone: rows that went away meanwhile, ask again.
CREATE FUNCTION cancel_many(ids uuid[], OUT released uuid[], OUT gone uuid[]) LANGUAGE plpgsql AS $$
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

-- Books a delivery or a loss. outcome: 1 booked, 2 was booked before, 3 would leave the range, 4 booked before with
-- another product or delta, 0 ask again. `quantity` is what there is now.
CREATE FUNCTION add_stock(movement uuid, product uuid, change int, most bigint, OUT outcome int, OUT available bigint)
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
