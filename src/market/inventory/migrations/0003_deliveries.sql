-- The deliveries that were added to the stock, so that a repeated one is not added again, and a stock that belongs to an
-- earlier version of the product does not undo it. Deleted after a time (retention.deliveries_days).
CREATE TABLE deliveries (
    product_id uuid NOT NULL,
    -- The client's own; other products may have the same.
    id uuid NOT NULL,
    quantity int NOT NULL CHECK (quantity > 0),
    -- The version of the product with which it was added.
    product_version bigint NOT NULL CHECK (product_version > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (product_id, id)
);

-- Used only by the retention of deliveries.
CREATE INDEX deliveries_created_at ON deliveries (created_at);

-- The highest version of the product's deliveries; 0: it has had none. The service's previous version neither reads nor
-- writes the column.
ALTER TABLE inventory ADD COLUMN delivery_version bigint NOT NULL DEFAULT 0;
