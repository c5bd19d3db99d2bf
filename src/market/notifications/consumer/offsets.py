"""Which messages of a partition are settled, and which offset may be committed.

Mails are sent concurrently, so the messages of a partition are settled out of order. The committed offset is that of
the first unsettled message. Later messages may already be settled. So that these are not mailed again after a restart,
the commit's metadata lists the unsettled messages, as many as fit.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from threading import Lock
from typing import Literal, NamedTuple

# Kafka's default for offset.metadata.max.bytes is 4096.
MAX_METADATA_LENGTH = 3_900
# The maximum length of the metadata without the list of unsettled offsets.
_FIXED_LENGTH = 80


class CommitPoint(NamedTuple):
    """What is committed: the first unsettled offset, and the metadata that `encode_metadata` returns."""

    offset: int
    metadata: str


def encode_metadata(offset: int, read_to: int, unsettled: list[int], topic_id: str = "") -> str:
    """Return the metadata of a commit at `offset`.

    Everything before `read_to` is settled, except for the offsets in `unsettled`, which are in ascending order. The
    format is `1;READ_TO;UNSETTLED,...;TOPIC_ID`, with numbers relative to `offset`. TOPIC_ID may be absent.
    """
    suffix = f";{topic_id}" if topic_id else ""
    if read_to - offset == len(unsettled):
        # No message from `offset` on is settled, so there is nothing to list.
        return f"1;0;{suffix}" if suffix else ""
    parts: list[str] = []
    length = _FIXED_LENGTH
    for unsettled_offset in unsettled:
        part = str(unsettled_offset - offset)
        length += len(part) + 1
        if length > MAX_METADATA_LENGTH:
            # The list is full. After a restart, all messages from here on are processed again.
            read_to = unsettled_offset
            break
        parts.append(part)
    return f"1;{read_to - offset};{','.join(parts)}{suffix}"


def decode_topic_id(metadata: str | None) -> str:
    """Return the topic id in the metadata, or an empty string if it has none."""
    return (metadata or "").split(";")[3] if (metadata or "").count(";") == 3 else ""


def decode_metadata(offset: int, metadata: str | None) -> tuple[int, list[int]]:
    """Return (read_to, unsettled), as for `encode_metadata`, or (offset, []) if the metadata is malformed."""
    try:
        version, read_to_text, unsettled_text, *_ = (metadata or "").split(";")
        unsettled = [offset + int(part) for part in unsettled_text.split(",")] if unsettled_text else []
        read_to = offset + int(read_to_text)
    except ValueError:
        return offset, []
    if (
        version != "1"
        or read_to < offset
        or unsettled != sorted(set(unsettled))
        or (unsettled and not offset <= unsettled[0] <= unsettled[-1] < read_to)
    ):
        return offset, []
    return read_to, unsettled


class OffsetTracker:
    """Tracks which messages of a partition are settled, from its assignment to its revocation.

    Thread-safe: the consumer's thread adds and commits, and the event loop settles.
    """

    def __init__(self, partition: int, offset: int, metadata: str | None = None, topic_id: str = "") -> None:
        self.partition = partition
        self.topic_id = topic_id
        self._lock = Lock()
        self._read_to, expected = decode_metadata(offset, metadata)
        # Used as a sorted set: a dict keeps insertion order, and messages are read by ascending offset.
        self._unsettled: dict[int, None] = dict.fromkeys(expected)
        # The offsets that the metadata lists as unsettled, and that have not been read yet.
        self._expected = deque(expected)
        self._committed = CommitPoint(offset, metadata or "")

    def add(self, offset: int) -> bool:
        """Record that a message was read. Return False if it was settled before the partition was assigned."""
        with self._lock:
            # The broker has deleted the expected messages before this one, so they will never be settled.
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

    def reach_end(self, offset: int) -> None:
        """Record that everything before `offset` was read.

        The last offsets may belong to control records, such as transaction markers, which are never added.
        """
        with self._lock:
            self._read_to = max(self._read_to, offset)

    def settle(self, offset: int) -> None:
        """Record that the message at `offset` is settled."""
        with self._lock:
            self._unsettled.pop(offset, None)

    def next_commit(self) -> CommitPoint | None:
        """Return the next point to commit, or None if it was committed already."""
        with self._lock:
            offset = next(iter(self._unsettled), self._read_to)
            point = CommitPoint(offset, encode_metadata(offset, self._read_to, list(self._unsettled), self.topic_id))
            return None if point == self._committed else point

    def mark_committed(self, point: CommitPoint) -> None:
        """Record that the broker has accepted the commit."""
        with self._lock:
            self._committed = point

    def mark_uncommitted(self) -> None:
        """Make `next_commit` return a point even if no message has been settled."""
        self.mark_committed(CommitPoint(-1, ""))

    @property
    def next_to_read(self) -> int:
        """The offset of the next message to read. Messages that were settled before the assignment are skipped."""
        with self._lock:
            return self._expected[0] if self._expected else self._read_to

    @property
    def committed_offset(self) -> int:
        return self._committed.offset

    @property
    def first_unsettled(self) -> int:
        """The offset of the first unsettled message, or of the next one to read if all are settled."""
        with self._lock:
            return next(iter(self._unsettled), self._read_to)


class Position(NamedTuple):
    """A position in a partition. `topic_id` is empty if it is unknown."""

    offset: int
    topic_id: str


@dataclass(frozen=True, slots=True)
class StartPosition:
    """Where consumption of a partition begins.

    no_offset_reason: set if consumption starts here because the group has no committed offset of this topic
    reset_reason: set if consumption starts here because an offset was out of range. Names the offset and the range
    """

    offset: int
    metadata: str | None = None
    no_offset_reason: Literal["first-start", "no-offset", "new-topic"] | None = None
    reset_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionState:
    """What is known about a partition when it is assigned.

    topic_id: the id of the topic. Empty if the broker does not support topic ids
    low, high: the first offset that the broker has, and the offset after the last one
    offset_after_first_start: see StartOffsets.offset_after_first_start
    committed: the group's committed offset and metadata. None if there is no committed offset
    last_position: the first unsettled offset when this process last owned the partition. None if it never did
    may_lack_offset: whether it is normal that there is no committed offset. True at the group's first start, and for a
        partition that has never had a deferred mail
    """

    topic_id: str
    low: int
    high: int
    offset_after_first_start: int
    committed: tuple[int, str | None] | None = None
    last_position: Position | None = None
    may_lack_offset: bool = False

    def is_same_topic(self, topic_id: str) -> bool:
        """Return whether the id belongs to this topic. An empty (unknown) id matches any topic."""
        return not topic_id or not self.topic_id or topic_id == self.topic_id


def start_position(state: PartitionState, *, topic_is_new: bool, replay_missed: bool) -> StartPosition:
    """Return where consumption of a partition starts.

    topic_is_new: True if the topic did not exist when this process started. Then all of its events are mailed
    """
    # The events of a new topic were published after this process started, so all of them have to be mailed.
    replay_missed = replay_missed or topic_is_new
    last = state.last_position
    if state.committed is not None and (replay_missed or last is not None):
        offset, metadata = state.committed
        if not state.is_same_topic(decode_topic_id(metadata)):
            return StartPosition(state.offset_after_first_start, no_offset_reason="new-topic")
        if state.low <= offset <= state.high:
            return StartPosition(offset, metadata)
        return _out_of_range("committed offset", offset, state)
    if last is not None:
        # The group's offsets were lost while this process was running; perhaps the topic was created again.
        if not state.is_same_topic(last.topic_id):
            return StartPosition(state.offset_after_first_start, no_offset_reason="new-topic")
        if state.low <= last.offset <= state.high:
            return StartPosition(last.offset, no_offset_reason="no-offset")
        return _out_of_range("position", last.offset, state)
    if not replay_missed:
        return StartPosition(state.high)
    if not state.may_lack_offset:
        return StartPosition(state.offset_after_first_start, no_offset_reason="no-offset")
    return StartPosition(state.low if topic_is_new else state.high, no_offset_reason="first-start")


def _out_of_range(name: str, offset: int, state: PartitionState) -> StartPosition:
    return StartPosition(
        state.offset_after_first_start, reset_reason=f"{name} {offset}, the broker has {state.low} to {state.high}"
    )
