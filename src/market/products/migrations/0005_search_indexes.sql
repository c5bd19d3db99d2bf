-- concurrently
-- After the words are there: an index that grows with each of them takes three times as long.
-- Without fastupdate: after many inserts the pending list makes searches slow.
DROP INDEX CONCURRENTLY IF EXISTS product_search_words;
CREATE INDEX CONCURRENTLY product_search_words ON product_search USING gin (name_words, all_words) WITH (fastupdate = off);

-- The order of relevance within a rank: the shorter name first, then the newer product.
DROP INDEX CONCURRENTLY IF EXISTS product_search_order;
CREATE INDEX CONCURRENTLY product_search_order ON product_search ((-name_size), id);

DROP INDEX CONCURRENTLY IF EXISTS search_vocabulary_trigrams;
CREATE INDEX CONCURRENTLY search_vocabulary_trigrams ON search_vocabulary USING gin (trigrams) WITH (fastupdate = off);
