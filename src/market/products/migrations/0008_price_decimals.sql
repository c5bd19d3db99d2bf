-- Prices with three decimals, for currencies such as KWD. Without a scale, the type of a column needs no change of its
-- rows and indexes, and no lock for longer than a moment; any other scale would rewrite the table. Prices keep the
-- decimals with which they are written, so that the version that is still running reads its own as before.
-- Not validated: that would read the table under this lock.
ALTER TABLE products
    DROP CONSTRAINT products_price_check,
    ALTER COLUMN price TYPE numeric,
    ADD CONSTRAINT products_price_check CHECK (price >= 0 AND price < 100000000 AND scale(price) <= 3) NOT VALID;
