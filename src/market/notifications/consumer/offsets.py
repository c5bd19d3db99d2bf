"""Which messages of a partition are settled, and which offset may be committed.

Mails are sent concurrently, so the messages of a partition are settled out of order. The committed offset is that of
the first message that is not settled. Those settled after it are listed in the commit's metadata, so that a restart
does not repeat them while one mail waits for its next attempt.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

# Kafka's default for offset.metadata.max.bytes is 4096.
MAX_METADATA_LENGTH = 3_900
_PREFIX_LENGTH = 40


class CommitPoint(NamedTuple):
    """What is committed for a partition: the next offset to process, and what is settled after it."""

    offset: int
    metadata: str


def encode_metadata(offset: int, read_to: int, unsettled: list[int]) -> str:
    """Return the metadata of a commit at `offset`: everything before `read_to` is settled except `unsettled`
    (ascending).

    The format is `1;READ_TO;UNSETTLED,...`, with numbers relative to `offset`.
    """
    if read_to - offset == len(unsettled):
        # Nothing after the offset is settled.
        return ""
    parts: list[str] = []
    length = _PREFIX_LENGTH
    for unsettled_offset in unsettled:
        part = str(unsettled_offset - offset)
        length += len(part) + 1
        if length > MAX_METADATA_LENGTH:
            # The rest does not fit: messages from here on are processed again after a restart.
            read_to = unsettled_offset
            break
        parts.append(part)
    return f"1;{read_to - offset};{','.join(parts)}"


def decode_metadata(offset: int, metadata: str | None) -> tuple[int, list[int]]:
    """Return `read_to` and `unsettled` of a commit at `offset`; of malformed metadata (offset, [])."""
    try:
        version, read_to, unsettled = (metadata or "").split(";")
        gaps = [offset + int(part) for part in unsettled.split(",")] if unsettled else []
        end = offset + int(read_to)
    except ValueError:
        return offset, []
    if (
        version != "1"
        or end < offset
        or gaps != sorted(set(gaps))
        or (gaps and not offset <= gaps[0] <= gaps[-1] < end)
    ):
        return offset, []
    return end, gaps


class OffsetTracker:
    """The offsets of one partition from its assignment to its revocation.

    Thread-safe: the consumer's thread adds and commits, the event loop settles.
    """

    def __init__(self, partition: int, offset: int, metadata: str | None = None) -> None:
        self.partition = partition
        self._lock = Lock()
        self._read_to, expected = decode_metadata(offset, metadata)
        # Ascending, because messages are read in order.
        self._unsettled: dict[int, None] = dict.fromkeys(expected)
        # Unsettled according to the metadata, and not read yet.
        self._expected = deque(expected)
        self._committed = CommitPoint(offset, metadata or "")

    def add(self, offset: int) -> bool:
        """Record that a message was read. Return False if it was settled before the partition was assigned."""
        with self._lock:
            # Messages that the metadata expects and the log no longer has will never be settled.
            while self._expected and self._expected[0] < offset:
                self._unsettled.pop(self._expected.popleft(), None)
            if self._expected and self._expected[0] == offset:
                self._expected.popleft()
                return True
            if offset < self._read_to:
                return False
            self._read_to = offset + 1
            self._unsettled[offset] = None
            return True

    def settle(self, offset: int) -> None:
        """Record that the message needs nothing more."""
        with self._lock:
            self._unsettled.pop(offset, None)

    def next_commit(self) -> CommitPoint | None:
        """Return what is to be committed, or None if that was committed last."""
        with self._lock:
            offset = next(iter(self._unsettled), self._read_to)
            point = CommitPoint(offset, encode_metadata(offset, self._read_to, list(self._unsettled)))
            return None if point == self._committed else point

    def mark_committed(self, point: CommitPoint) -> None:
        """Record what was committed."""
        with self._lock:
            self._committed = point

    def mark_uncommitted(self) -> None:
        """Let `next_commit` return a point even if nothing is settled."""
        self.mark_committed(CommitPoint(-1, ""))

    @property
    def committed_offset(self) -> int:
        return self._committed.offset

    @property
    def position(self) -> int:
        """The first offset that is not settled."""
        with self._lock:
            return next(iter(self._unsettled), self._read_to)


@dataclass(frozen=True, slots=True)
class StartPosition:
    """Where consumption of a partition begins. `reset_reason`: why it is not where it should be, if it is not."""

    offset: int
    metadata: str | None = None
    reset_reason: str | None = None


def start_position(
    committed: tuple[int, str | None] | None,
    low: int,
    high: int,
    *,
    last_position: int | None,
    topic_is_new: bool,
    replay_missed: bool,
) -> StartPosition:
    """Return where to begin in a partition whose offsets range from `low` to `high`.

    committed: the group's offset and metadata, or None
    last_position: the position of this process when it had the partition before
    topic_is_new: the topic did not exist when this process started, so that all of it is to be mailed
    """
    if committed is not None and (replay_missed or last_position is not None):
        offset, metadata = committed
        if low <= offset <= high:
            return StartPosition(offset, metadata)
        return StartPosition(low, reset_reason=f"committed {offset}, the broker has {low} to {high}")
    if last_position is not None:
        # The group's offsets were lost while this process was running; perhaps the topic was recreated.
        if low <= last_position <= high:
            return StartPosition(last_position)
        return StartPosition(low, reset_reason=f"position {last_position}, the broker has {low} to {high}")
    return StartPosition(low if topic_is_new and replay_missed else high)
