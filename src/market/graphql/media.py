"""Which of the two media types an answer is in: the negotiation of GraphQL over HTTP."""

from __future__ import annotations

from functools import lru_cache

PREFERRED = "application/graphql-response+json"
LEGACY = "application/json"


@lru_cache(maxsize=256)
def negotiated(accept: str) -> str | None:
    """The type that the Accept header likes best, or None. Who accepts anything gets the preferred one.

    A browser's own request gets the legacy one: it shows that, and stores the other as a file.
    """
    if not accept.strip():
        return PREFERRED
    anything = LEGACY if "text/html" in accept else PREFERRED
    liked: dict[str, tuple[float, int]] = {}
    otherwise: tuple[float, int] | None = None
    for i, part in enumerate(accept.lower().split(",")):
        kind, *parameters = (p.strip() for p in part.split(";"))
        rank = (_quality(parameters), -i)
        if kind in (PREFERRED, LEGACY):
            liked[kind] = max(rank, liked.get(kind, rank))
        elif kind in ("*/*", "application/*") and otherwise is None:
            otherwise = rank
    if otherwise is not None:
        liked.setdefault(anything, otherwise)
    best = max(liked, key=lambda kind: liked[kind], default=None)
    return best if best is not None and liked[best][0] > 0 else None


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                return 0.0
    return 1.0
