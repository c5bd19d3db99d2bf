-- repeatedly
-- The words of the products that are older than the search's table. During one of these transactions its products cannot be
-- deleted, and a change of a name waits. Words written since then are kept.
WITH batch AS MATERIALIZED (
    SELECT id, name, description FROM products WHERE id > (SELECT filled_to FROM search_filling)
    ORDER BY id LIMIT 250 FOR KEY SHARE
), stored AS MATERIALIZED (
    SELECT search_store(array_agg((id, name, description)::search_source), false) FROM batch
)
UPDATE search_filling SET filled_to = (SELECT id FROM batch ORDER BY id DESC LIMIT 1)
WHERE EXISTS (SELECT FROM batch) AND (SELECT count(*) FROM stored) = 1;
