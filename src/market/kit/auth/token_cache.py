"""A cache of verified tokens."""

from __future__ import annotations

from collections import OrderedDict

from market.kit.auth import metrics
from market.kit.auth.identity import Identity

# The estimated memory of an entry, without its strings.
_ENTRY_BYTES = 1000
# The maximum memory of one character of a string.
_CHARACTER_BYTES = 4


class TokenCache:
    """Caches the identity that a token proves, by the token's digest. The cache is limited in entries and bytes."""

    def __init__(self, max_count: int, max_bytes: int) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._bytes = 0
        # By digest: identity, expiry, the key's thumbprint, and the size in bytes. The least recently used entry is
        # first.
        self._entries: OrderedDict[bytes, tuple[Identity, float, str, int]] = OrderedDict()
        metrics.CACHED_TOKENS.set_function(lambda: len(self._entries))

    def get(self, digest: bytes, now: float) -> Identity | None:
        """Return the identity, or None if the token is not cached or has expired."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        if entry[1] <= now:
            self._remove(digest)
            return None
        self._entries.move_to_end(digest)
        return entry[0]

    def put(self, digest: bytes, identity: Identity, expires_at: float, thumbprint: str) -> None:
        """Cache a token until `expires_at`. If the cache is full, drop the least recently used tokens."""
        size = _ENTRY_BYTES + _CHARACTER_BYTES * (len(identity.subject) + len(identity.email or ""))
        if digest in self._entries:
            self._remove(digest)
        self._entries[digest] = (identity, expires_at, thumbprint, size)
        self._bytes += size
        while self._entries and (len(self._entries) > self._max_count or self._bytes > self._max_bytes):
            self._remove(next(iter(self._entries)))

    def remove_signed_by(self, thumbprints: frozenset[str]) -> None:
        """Remove the tokens that these keys have signed."""
        for digest in [digest for digest, entry in self._entries.items() if entry[2] in thumbprints]:
            self._remove(digest)

    def _remove(self, digest: bytes) -> None:
        self._bytes -= self._entries.pop(digest)[3]
