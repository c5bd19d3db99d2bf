-- repeatedly
-- The words of the products that were there before the search's table. A product is locked against deletion for as long as
-- one of these transactions takes, and so has whoever changes its name to wait. What was written since is kept.
WITH batch AS MATERIALIZED (
    SELECT id, name, description FROM products WHERE id > (SELECT filled_to FROM search_filling)
    ORDER BY id LIMIT 250 FOR KEY SHARE
), stored AS MATERIALIZED (
    SELECT search_store(array_agg((id, name, description)::search_source), false) FROM batch
)
UPDATE search_filling SET filled_to = (SELECT id FROM batch ORDER BY id DESC LIMIT 1)
WHERE EXISTS (SELECT FROM batch) AND (SELECT count(*) FROM stored) = 1;
