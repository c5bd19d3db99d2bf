-- The words of each product, for the search.
--
-- They are in a table of their own, which triggers keep up to date: so the version that is still running fills it, too,
-- and nothing is locked while the next migration adds the words of the products that are there already.
-- `products.search` serves the version that is still running, and is to be dropped one release later.
--
-- Words are the same on every server: nothing here depends on the locale of the database, or on an extension.

-- Return the text in one form of Unicode, in lower case and without accents. Words are separated by spaces, or, where
-- punctuation joins them, by hyphens: "KL-2024, Daisy’s Tea Pot" becomes "kl-2024 daisy-s tea pot".
CREATE FUNCTION search_normalize(source text) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    -- The order of this collation is that of the code points, so that the ranges below mean the same everywhere.
    t text COLLATE "C" := source;
BEGIN
    IF octet_length(t) > char_length(t) THEN
        -- Signs that NFKD would turn into letters: ™ ℠ ® © ℗ №.
        t := translate(t, U&'\2122\2120\00AE\00A9\2117\2116', '      ');
        -- What is invisible: soft hyphens, joiners, marks of direction, variation selectors.
        t := regexp_replace(t, U&'[\00AD\034F\061C\115F\1160\180B-\180F\200B-\200F\202A-\202E\2060-\206F\3164'
            '\FE00-\FE0F\FEFF\FFA0]', '', 'g');
        t := normalize(t, NFKD);
        t := lower(t COLLATE pg_c_utf8);
        -- Marks are accents, but those of й and ў, which are letters of their own.
        t := regexp_replace(t, U&'(?<![\0438\0443])\0306|[\0300-\0305\0307-\036F\1AB0-\1AFF\1DC0-\1DFF\20D0-\20FF]',
            '', 'g');
        t := normalize(t, NFC);
        -- Letters that have no accent to remove: ß æ œ þ, ø ł đ ð ı ħ ŧ ς.
        t := replace(replace(replace(replace(t, U&'\00DF', 'ss'), U&'\00E6', 'ae'), U&'\0153', 'oe'), U&'\00FE', 'th');
        t := translate(t, U&'\00F8\0142\0111\00F0\0131\0127\0167\03C2', U&'olddiht\03C3');
        -- Apostrophes and hyphens.
        t := translate(t, U&'\2018\2019\201B\02B9\02BC\2032\2010\2011\2012\2013\2212', '-----------');
    ELSE
        t := lower(t);
    END IF;
    t := translate(t, '''`./\_&', '-------');
    -- Punctuation, symbols and spaces.
    RETURN regexp_replace(t, U&'[\0001-,:-@[-\0060{-\00BF\00D7\00F7\02C2-\02C5\02D2-\02EB\02ED\02EF-\02FF\0375\03F6'
        '\0482\055A-\055F\0589-\058F\05BE\05C0\05C3\05C6\05F3\05F4\0600-\060F\061B-\061F\066A-\066D\06D4\06DD\06DE\06E9'
        '\0700-\070F\0964\0965\0970\0E3F\0E4F\0E5A\0E5B\10FB\1360-\1368\1400\166D\166E\1680\17D4-\17DB\1800-\180A'
        '\2000-\20CF\2100-\214F\2190-\2BFF\2E00-\2E7F\3000-\3004\3008-\3020\3030\303D-\303F\30A0\30FB'
        '\FD3E\FD3F\FE10-\FE6F\FF5F-\FF65\FFE0-\FFFF\+01F000-\+01FAFF\+0E0000-\+0E01FF]+', ' ', 'g');
END
$$;

-- Return the stem of a normalised word: English words and Russian ones have one, others are their own.
CREATE FUNCTION search_stem(word text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN
    CASE WHEN word COLLATE "C" ~ '^[a-z]+$' THEN coalesce((ts_lexize('english_stem', word))[1], word)
         WHEN word COLLATE "C" ~ U&'^[\0430-\044F]+$' THEN coalesce((ts_lexize('russian_stem', word))[1], word)
         ELSE word END;

-- Return the words that punctuation joins as one word, {kl,2024} as kl2024; NULL if that would be another one, as 25 of
-- {2,5}.
CREATE FUNCTION search_join(parts text[]) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN
    CASE WHEN cardinality(parts) BETWEEN 2 AND 5 AND array_to_string(parts, '-') COLLATE "C" !~ '[0-9]-[0-9]'
         THEN left(array_to_string(parts, ''), 100) END;

-- Return the words of a text, a vector of the words and their stems, and the number of positions in it, which begin
-- after `start`. Words that punctuation joins are also one word, at the position of the first and of the last. Words
-- are cut after 100 characters.
CREATE FUNCTION search_parse(source text, start integer, OUT words text[], OUT vector tsvector, OUT size integer)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    chunk text;
    parts text[];
    word text;
    stem text;
    entries text[] := '{}';
BEGIN
    words := '{}';
    size := 0;
    FOREACH chunk IN ARRAY string_to_array(search_normalize(source), ' ') LOOP
        CONTINUE WHEN chunk = '';
        parts := array_remove(string_to_array(chunk, '-'), '');
        FOREACH word IN ARRAY parts LOOP
            word := left(word, 100);
            stem := search_stem(word);
            size := size + 1;
            words := words || word;
            entries := entries || (stem || ':' || start + size);
            IF stem <> word THEN
                entries := entries || (word || ':' || start + size);
            END IF;
        END LOOP;
        word := search_join(parts);
        IF word IS NOT NULL THEN
            stem := search_stem(word);
            words := words || word;
            entries := entries || (word || ':' || start + size - cardinality(parts) + 1 || ',' || start + size);
            IF stem <> word THEN
                entries := entries || (stem || ':' || start + size - cardinality(parts) + 1 || ',' || start + size);
            END IF;
        END IF;
    END LOOP;
    vector := array_to_string(entries, ' ')::tsvector;
END
$$;

-- What one term of a search, a word or a phrase, matches, in the syntax of tsquery; NULL if the term has no words.
-- whole: its words and those of the same stem; part: also words that begin with its last one
-- size: the number of words; optional: whether it is a word that other texts leave out, such as "of"
CREATE FUNCTION search_term(
    term text, is_phrase boolean, 
    OUT whole text, OUT part text, OUT size integer, OUT optional boolean
) LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    chunk text;
    parts text[];
    stems text[];
    last text;
    stem text;
    prefix text;
    joined text;
BEGIN
    size := 0;
    IF is_phrase THEN
        SELECT array_agg(search_stem(left(w, 100)) ORDER BY n), count(*) INTO stems, size
        FROM string_to_table(replace(search_normalize(term), '-', ' '), ' ') WITH ORDINALITY AS p (w, n) WHERE w <> '';
        whole := '(' || array_to_string(stems, ' <-> ') || ')';
        part := whole;
    ELSE
        FOREACH chunk IN ARRAY string_to_array(search_normalize(term), ' ') LOOP
            parts := array_remove(string_to_array(chunk, '-'), '');
            CONTINUE WHEN parts = '{}';
            SELECT array_agg(search_stem(left(p, 100)) ORDER BY n) INTO stems
            FROM unnest(parts) WITH ORDINALITY AS u (p, n);
            size := size + cardinality(parts);
            joined := search_join(parts);
            last := left(parts[cardinality(parts)], 100);
            -- One letter, or two digits, would be the beginning of too many words.
            prefix := CASE WHEN char_length(last) > 2 OR last COLLATE "C" !~ '^[0-9]|^.$' THEN last || ':*' END;
            -- The words that begin with the last one include those of its stem, unless the stem is another.
            stem := stems[cardinality(stems)];
            stem := '(' || concat_ws(' | ', CASE WHEN prefix IS NULL OR stem <> last THEN stem END, prefix) || ')';
            part := concat_ws(' & ', whole, '(' || concat_ws(' | ',
                array_to_string(stems[:cardinality(stems) - 1] || stem, ' <-> '), joined || ':*') || ')');
            whole := concat_ws(' & ', whole,
                '(' || concat_ws(' | ', array_to_string(stems, ' <-> '), search_stem(joined)) || ')');
        END LOOP;
    END IF;
    IF size = 0 THEN
        whole := NULL;
        part := NULL;
    END IF;
    optional := size = 1 AND NOT is_phrase
        AND (ts_lexize('english_stem', last) = '{}' OR ts_lexize('russian_stem', last) = '{}');
END
$$;

-- Return the trigrams of a word, which say how similar two words are.
CREATE FUNCTION search_trigrams(word text) RETURNS text[] LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT array_agg(DISTINCT substr('  ' || word || ' ', n, 3)) FROM generate_series(1, char_length(word) + 1) AS n
$$;

CREATE TABLE product_search (
    id uuid PRIMARY KEY,
    -- The number of words in the name: a search lists products with a short name first.
    name_size integer NOT NULL,
    name_words tsvector NOT NULL,
    -- Those of name and description. Positions leave a gap between the two, so that no phrase spans both.
    all_words tsvector NOT NULL
);

-- Every word that begins with three letters that a product has or had: for the words that begin like one, and for those
-- that are similar to it. Long words and those with digits are not compared, and have no trigrams.
CREATE TABLE search_vocabulary (
    word text COLLATE "C" PRIMARY KEY,
    trigrams text[] COLLATE "C" NOT NULL
);

CREATE TYPE search_source AS (id uuid, name text, description text);

-- Store the words of products. Those that are there already are replaced or, if `replacing` is false, kept.
CREATE FUNCTION search_store(sources search_source[], replacing boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH named AS MATERIALIZED (
        SELECT id, n.*, d.words AS description_words, d.vector AS description_vector
        FROM unnest(sources) AS s, search_parse(name, 0) AS n, search_parse(description, n.size + 10) AS d
    ), stored AS (
        INSERT INTO product_search (id, name_size, name_words, all_words)
        SELECT id, size, vector, (vector::text || ' ' || description_vector::text)::tsvector
        FROM named ORDER BY id
        ON CONFLICT (id) DO UPDATE SET name_size = excluded.name_size, name_words = excluded.name_words,
            all_words = excluded.all_words
        WHERE replacing
    )
    -- In order, so that two writers cannot deadlock.
    INSERT INTO search_vocabulary (word, trigrams)
    SELECT word, CASE WHEN word ~ '[0-9]|.{31}' THEN '{}' ELSE search_trigrams(word) END
    FROM (SELECT DISTINCT word COLLATE "C" AS word FROM named, unnest(words || description_words) AS word) AS w
    WHERE word ~ '^[^0-9]{3}'
        AND NOT EXISTS (SELECT FROM search_vocabulary AS v WHERE v.word = w.word)
    ORDER BY word
    ON CONFLICT DO NOTHING;
END
$$;

CREATE FUNCTION search_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM search_store(array_agg((id, name, description)::search_source), true) FROM changed;
    RETURN NULL;
END
$$;
CREATE FUNCTION search_updated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM search_store(array_agg((n.id, n.name, n.description)::search_source), true)
    FROM changed AS n JOIN previous AS p USING (id)
    WHERE (n.name, n.description) IS DISTINCT FROM (p.name, p.description);
    RETURN NULL;
END
$$;
CREATE FUNCTION search_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        TRUNCATE product_search;
    ELSE
        DELETE FROM product_search USING changed WHERE product_search.id = changed.id;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER search_inserted AFTER INSERT ON products
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION search_inserted();
CREATE TRIGGER search_updated AFTER UPDATE ON products
    REFERENCING OLD TABLE AS previous NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION search_updated();
CREATE TRIGGER search_deleted AFTER DELETE ON products
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION search_deleted();
CREATE TRIGGER search_truncated AFTER TRUNCATE ON products FOR EACH STATEMENT EXECUTE FUNCTION search_deleted();

-- Up to which id the next migration has stored the words of the products that are there already.
CREATE TABLE search_filling (single boolean PRIMARY KEY DEFAULT true CHECK (single), filled_to uuid NOT NULL);
INSERT INTO search_filling (filled_to) VALUES ('00000000-0000-0000-0000-000000000000');
