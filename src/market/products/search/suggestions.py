"""Suggestions for a search that finds nothing: the products with the most similar words.

Each word of the search is replaced by the words of products that are most similar by trigrams. If no product contains
all of these words either, those with the most of them in their names are suggested.
"""

# ruff: noqa: S608 -- the texts of the statements are made of numbers.

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from market.kit.postgres import Connection
from market.products.search.language import Search
from market.products.search.matching import Matches, all_of, any_of, condition
from market.products.search.ranking import read_first_positions
from market.products.search.sampling import Sample, count_each, take_sample

MAX_SUGGESTIONS = 100
# Words of more products than this are not used alone: they do not tell good suggestions from others.
_MAX_CANDIDATES = 5000

# The words of the search without those such as "of", unless there are no others.
_WORDS = """
    SELECT word FROM (
        SELECT word, optional, bool_and(optional) OVER () AS all_optional
        FROM (
            SELECT DISTINCT left(word, 100) AS word
            FROM unnest($1::text[]) AS term, string_to_table(replace(search_normalize(term), '-', ' '), ' ') AS word
            WHERE word <> ''
        ) AS words, search_term(word, false)
    ) AS words WHERE all_optional OR NOT optional ORDER BY word
"""
# For each word, the stems of the similar ones. Numbers and very short words are only similar to themselves.
_SIMILAR = """
    SELECT w.word, array_agg(DISTINCT search_stem(near.word)) AS stems
    FROM unnest($1::text[]) AS w (word), search_trigrams(w.word) AS typed,
        LATERAL (
            SELECT w.word, 1 AS similarity WHERE w.word COLLATE "C" ~ '[0-9]|^.{1,2}$'
            UNION ALL
            SELECT word, similarity FROM (
                SELECT v.word, common::real / (cardinality(v.trigrams) + cardinality(typed) - common) AS similarity
                FROM search_vocabulary AS v,
                    LATERAL (SELECT count(*) AS common FROM unnest(v.trigrams) AS t WHERE t = ANY (typed)) AS c
                WHERE v.trigrams && typed AND abs(char_length(v.word) - char_length(w.word)) <= 3
            ) AS v WHERE similarity >= 0.3
            ORDER BY similarity DESC, word LIMIT 3
        ) AS near
    GROUP BY w.word
"""


async def find_suggestions(conn: Connection, search: Search, matches: Matches) -> list[UUID]:
    """Return the ids of the most similar products, the best first; at most MAX_SUGGESTIONS."""
    terms = [term.text for group in search.groups for term in group]
    words = [row[0] for row in await conn.fetch(_WORDS, terms)]
    similar = [any_of(row["stems"]) for row in await conn.fetch(_SIMILAR, words)]
    if not similar:
        return []
    everything = all_of(similar)
    corrected = Matches(whole=everything, part=everything, excluded=matches.excluded)
    sample = await take_sample(conn, corrected)
    positions = await read_first_positions(conn, corrected, sample, MAX_SUGGESTIONS)
    if positions or len(words) == 1:
        return [position.id for position in positions]
    return await _with_most_words(conn, similar, matches.excluded, sample, min_hits=(len(words) + 1) // 2)


async def _with_most_words(
    conn: Connection, words: Sequence[str], excluded: str, sample: Sample, *, min_hits: int
) -> list[UUID]:
    """Return the products with the most of the words in their names, among all that have a rare one."""
    counts = dict(zip(words, await count_each(conn, sample, "name_words", words, _MAX_CANDIDATES), strict=True))
    rarest = sorted(words, key=lambda word: counts[word])
    rare = [word for word in rarest if counts[word] <= _MAX_CANDIDATES] or rarest[:1]
    hits = " + ".join(f"(name_words @@ ${n}::tsquery)::integer" for n in range(2, len(words) + 2))
    arguments: list[object] = [any_of(rare), *words]
    not_excluded = ""
    if excluded:
        arguments.append(excluded)
        not_excluded = f"AND NOT {condition('all_words', len(arguments), by_index=False)}"
    text = f"""
        WITH found AS MATERIALIZED (
            SELECT id, name_size, {hits} AS hits FROM product_search
            WHERE {condition("name_words", 1, by_index=True)} {not_excluded} LIMIT {_MAX_CANDIDATES}
        )
        SELECT id FROM found WHERE hits >= {min_hits} ORDER BY hits DESC, name_size, id DESC LIMIT {MAX_SUGGESTIONS}
    """
    return [row[0] for row in await conn.fetch(text, *arguments)]
