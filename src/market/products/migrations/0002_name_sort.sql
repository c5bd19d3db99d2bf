-- concurrently
-- Names in alphabetical order for people: apple, Äpfel, banana, Zebra. It does not depend on the database's locale, nor on
-- ICU, which not every PostgreSQL is built with (docs/decisions/0014). An index on an expression needs no column, so
-- whatever the running version writes has its place, and so do the existing rows.

-- What names are compared by: their letters in lower case, where a letter with an accent follows the one without; then,
-- between names that differ in nothing else, the name itself. NFKD separates letters and accents. Letters that it does not
-- separate are replaced. At most 200 characters are compared, because an entry of the index is limited to 2,704 bytes.
CREATE OR REPLACE FUNCTION name_sort_key(name text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN octet_length(name) = char_length(name) THEN lower(name)
    ELSE left(
        regexp_replace(
            translate(
                replace(replace(replace(replace(replace(replace(replace(replace(replace(replace(
                    lower(normalize(name, NFKD) COLLATE pg_c_utf8),
                    'ß', 'ss'), 'æ', 'ae'), 'œ', 'oe'), 'þ', 'th'),
                    'ł', 'l' || U&'\+10FFFD'), 'ø', 'o' || U&'\+10FFFD'), 'đ', 'd' || U&'\+10FFFD'),
                    -- Ukrainian: и і ї й, е є, г ґ.
                    'і', 'и' || U&'\+10FFFC'), 'є', 'е' || U&'\+10FFFD'), 'ґ', 'г' || U&'\+10FFFD'),
                'ı’‘“”„«»', 'i''''"""""'
            ),
            -- Combining marks.
            '[\u0300-\u036F\u20D0-\u20FF]', U&'\+10FFFD', 'g'
        ),
        200
    )
END || U&'\0001' || name;

DROP INDEX CONCURRENTLY IF EXISTS products_name_sort;

-- Beside products_name, which serves the running version.
CREATE INDEX CONCURRENTLY products_name_sort ON products ((name_sort_key(name) COLLATE "C"), id);
