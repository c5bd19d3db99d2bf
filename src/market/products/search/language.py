"""The language of a search: words, "phrases", -excluded, and OR between two of them.

    white lantern       both words
    "white lantern"     the two words one after the other
    lantern -white      the first word, and not the second
    white OR black      one of the two; OR joins only what is next to it
    KL-2024             the words kl and 2024 one after the other, or kl2024

No text is invalid: what has no meaning at its place, such as an unpaired quote, a dash between spaces or an OR at the
end, separates words. So the name of a product can be pasted unchanged.
"""

from __future__ import annotations

import re

from msgspec import Struct

# Each of them can open or close a phrase, because phones type curly quotes.
_QUOTE = '"\u201c\u201d\u201e\u201f\u00ab\u00bb\uff02'
# Only this hyphen excludes. Other dashes, which word processors and phones type, are punctuation.
_TOKEN = re.compile(
    rf"(?P<minus>(?<!\S)-(?=[^\s-]))?(?:[{_QUOTE}](?P<phrase>[^{_QUOTE}]*)[{_QUOTE}]|(?P<word>[^\s{_QUOTE}]+)|[{_QUOTE}])"
)


class Term(Struct, frozen=True):
    """A word as it was typed, perhaps with punctuation in it, or a phrase without its quotes."""

    text: str
    is_phrase: bool = False


class Search(Struct, frozen=True):
    """A product is found if it has a term of each group, and no excluded one.

    may_go_on: whether the last word of the last group may be the beginning of a longer one.
    """

    groups: list[list[Term]]
    excluded: list[Term]
    may_go_on: bool


def parse(text: str, *, excludes: bool = True) -> Search:
    """Parse the text of a search. Every text is valid.

    excludes: whether a hyphen before a word excludes the word; otherwise it is punctuation.
    """
    groups: list[list[Term]] = []
    excluded: list[Term] = []
    joins = may_go_on = False
    tokens = [match for match in _TOKEN.finditer(text) if match["phrase"] or match["word"]]
    # Without other words, OR is a word.
    joins_words = any(match[0].lower() != "or" and any(map(str.isalnum, match[0])) for match in tokens)
    for match in tokens:
        phrase, word = match["phrase"], match["word"]
        is_excluded = excludes and match["minus"] is not None
        if word is not None and word.lower() == "or" and not is_excluded and joins_words:
            joins = bool(groups)
            continue
        term = Term(word) if phrase is None else Term(phrase, is_phrase=True)
        may_go_on = not is_excluded and phrase is None
        if is_excluded:
            excluded.append(term)
        elif joins:
            groups[-1].append(term)
        else:
            groups.append([term])
        joins = False
    return Search(groups, excluded, may_go_on)
