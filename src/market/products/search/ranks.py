"""The ranks of relevance, each as a condition that its products alone meet.

Rank 0: all words of the search are in the name. Rank 1: they are, but the last one is the beginning of a longer word.
Ranks 2 and 3: the same in name and description together.
"""

from __future__ import annotations

from typing import NamedTuple

from market.products.search.matching import Column, Matches, all_of, condition


class Rank(NamedTuple):
    """The products whose words in the column match the query, and none of the others, which are pairs like it."""

    number: int
    column: Column
    query: str
    others: list[tuple[Column, str]]

    def condition(self, arguments: list[object], *, by_index: bool) -> str:
        """Return the condition in SQL; its parameters are appended to the arguments."""
        arguments.append(self.query)
        conditions = [condition(self.column, len(arguments), by_index=by_index)]
        for column, query in self.others:
            arguments.append(query)
            conditions.append(f"NOT {condition(column, len(arguments), by_index=False)}")
        return " AND ".join(conditions)


def ranks_of(matches: Matches) -> list[Rank]:
    """Return the ranks that the search has, in their order."""
    if not matches.part:
        return [Rank(0, "all_words", matches.found, [])]
    ranks: list[Rank] = []
    others: list[tuple[Column, str]] = [("all_words", matches.excluded)] if matches.excluded else []
    columns: tuple[Column, ...] = ("name_words", "name_words", "all_words", "all_words")
    for number, column in enumerate(columns):
        query = matches.part if number % 2 else matches.whole
        # Without a last word that may go on there are two ranks only.
        if (column, query) not in others:
            # What the same column must not match is part of the query, so that the index need not read it.
            unwanted = [f"!({other})" for same, other in others if same == column]
            rest = [pair for pair in others if pair[0] != column]
            ranks.append(Rank(number, column, all_of([query, *unwanted]), rest))
            others = [*others, (column, query)]
    return ranks
