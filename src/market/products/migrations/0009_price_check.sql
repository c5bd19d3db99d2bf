-- Reads the table, while it is read and written by others.
ALTER TABLE products VALIDATE CONSTRAINT products_price_check;
