"""What a search matches, in PostgreSQL's tsquery syntax, and how many products match.

PostgreSQL's planner is not used to choose between the ways to read a search: it multiplies the frequencies of words,
which is wrong by orders of magnitude for words that often occur together, or never. So the matching products are
counted first, by the index of words and up to a bound, and the count decides.
"""

# ruff: noqa: S608 -- the texts of the statements are made of column names and numbers.

from __future__ import annotations

import re
from itertools import islice
from typing import Literal

from msgspec import Struct

from market.kit.errors import BadInput
from market.kit.postgres import Connection
from market.products.search.language import Search

# Compatibility characters may become several words each, so the length of the text does not limit their number.
MAX_WORDS = 100

_TERMS = """
    SELECT t.* FROM unnest($1::text[], $2::boolean[]) WITH ORDINALITY AS u (text, is_phrase, n),
        search_term(text, is_phrase) AS t
    ORDER BY n
"""

# A word that is the beginning of more words than this is matched as a beginning, for which PostgreSQL's index
# reads all products of all of these words; fewer words are matched one by one, and the index intersects them with the
# other words.
_MAX_CONTINUATIONS = 30
_CONTINUATIONS = """
    SELECT word FROM search_vocabulary WHERE word ^@ $1 AND $1 COLLATE "C" ~ '^[^0-9]{3}' ORDER BY word LIMIT $2
"""
# In a query, such as kettl in (kettl:*).
_BEGINNING = re.compile(r"([^\s()]+):\*")

Column = Literal["name_words", "all_words"]


class Matches(Struct, frozen=True):
    """Three queries; each is empty if the search has no such words.

    whole: all its words, or others of the same stem
    part: the same, but the last word may be the beginning of a longer one
    excluded: any of the words that must not occur
    """

    whole: str
    part: str
    excluded: str

    @property
    def found(self) -> str:
        """The query that decides whether a product is found; empty if the search has no words at all."""
        return all_of([query for query in (self.part, f"!({self.excluded})" if self.excluded else "") if query])


async def compile_search(conn: Connection, search: Search) -> Matches:
    """Return the queries of the search. Raises BadInput if it has too many words."""
    terms = [term for group in search.groups for term in group] + search.excluded
    rows = await conn.fetch(_TERMS, [term.text for term in terms], [term.is_phrase for term in terms])
    if (size := sum(row["size"] for row in rows)) > MAX_WORDS:
        raise BadInput("q", f"must have at most {MAX_WORDS} words, got {size}")
    remaining = iter(rows)
    # A term of nothing but punctuation has no words.
    groups = [[row for row in islice(remaining, len(group)) if row["size"]] for group in search.groups]
    excluded = [row["whole"] for row in remaining if row["size"]]
    groups = [group for group in groups if group]
    last = groups[-1][-1] if search.may_go_on and groups else None
    part_of_last = "" if last is None else await _with_continuations(conn, last["part"])
    # Words such as "of" are required only if there are no others.
    groups = [group for group in groups if not all(row["optional"] for row in group)] or groups
    return Matches(
        whole=all_of([any_of([row["whole"] for row in group]) for group in groups]),
        part=all_of([any_of([part_of_last if row is last else row["whole"] for row in group]) for group in groups]),
        excluded=any_of(excluded),
    )


async def _with_continuations(conn: Connection, query: str) -> str:
    """Return the query with each prefix replaced by the words that start with it, unless they are too many."""
    for beginning in _BEGINNING.findall(query):
        rows = await conn.fetch(_CONTINUATIONS, beginning, _MAX_CONTINUATIONS + 1)
        if 0 < len(rows) <= _MAX_CONTINUATIONS:
            words = any_of([row["word"] for row in rows])
            query = re.sub(rf"(?<=[( ]){re.escape(beginning)}:\*", words, query)
    return query


def any_of(queries: list[str]) -> str:
    """Return the query that matches what any of the queries matches."""
    return " | ".join(f"({query})" for query in queries)


def all_of(queries: list[str]) -> str:
    """Return the query that matches what all of the queries match."""
    return " & ".join(f"({query})" for query in queries)


def condition(column: Column, parameter: int, *, by_index: bool) -> str:
    """Return the condition that a product's words match the query in the parameter.

    by_index: whether to find the products by the index of words. Otherwise they are tested one by one: in this form the
    planner does not see that the index would serve.
    """
    text = f"{column} @@ ${parameter}::tsquery"
    return text if by_index else f"({text}) IS TRUE"


async def count(conn: Connection, column: Column, query: str, max_count: int) -> int:
    """Return how many products match the query, or one more than the maximum if there are more."""
    counted: int = await conn.fetchval(
        f"SELECT count(*) FROM (SELECT FROM product_search WHERE {condition(column, 1, by_index=True)} "
        f"LIMIT {max_count + 1}) AS counted",
        query,
    )
    return counted
