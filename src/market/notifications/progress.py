"""Which messages of a partition are done, and how much is held in memory.

Mails are sent side by side, so a partition is done with gaps. The offset committed is that of the
first message not yet done; what is done beyond it is written into the commit's metadata, so that a
restart while one mail waits for its next attempt does not repeat all those after it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from threading import Lock

from market.notifications import metrics

# Kafka's default for offset.metadata.max.bytes is 4096.
MOST_NOTE = 3_900


def write_note(offset: int, read_to: int, pending: list[int]) -> str:
    """The metadata of a commit at `offset`: all below `read_to` is done but `pending` (ascending)."""
    if read_to - offset == len(pending):
        # Nothing is done beyond the offset.
        return ""
    parts: list[str] = []
    length = 40
    for at in pending:
        part = str(at - offset)
        length += len(part) + 1
        if length > MOST_NOTE:
            # No room for more gaps: what lies from here on is handled again after a restart.
            read_to = at
            break
        parts.append(part)
    return f"1;{read_to - offset};{','.join(parts)}"


def read_note(offset: int, note: str | None) -> tuple[int, list[int]]:
    """`read_to` and `pending` of a commit; of a note that is not ours: nothing is known to be done."""
    try:
        version, read_to, pending = (note or "").split(";")
        gaps = [offset + int(part) for part in pending.split(",")] if pending else []
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


class Progress:
    """One partition from its assignment to its revocation. `take` is the poll thread's, `done` anyone's."""

    def __init__(self, partition: int, offset: int, note: str | None = None) -> None:
        self.partition = partition
        self._lock = Lock()
        self._read_to, expected = read_note(offset, note)
        # Ascending: messages are read in order.
        self._pending: dict[int, None] = dict.fromkeys(expected)
        self._expected = deque(expected)
        self._committed = (offset, note or "")

    def take(self, offset: int) -> bool:
        """Notes that the message was read. False: it was done before the partition came here."""
        with self._lock:
            # What the note expected and the log no longer has will never be done.
            while self._expected and self._expected[0] < offset:
                self._pending.pop(self._expected.popleft(), None)
            if self._expected and self._expected[0] == offset:
                self._expected.popleft()
                return True
            if offset < self._read_to:
                return False
            self._read_to = offset + 1
            self._pending[offset] = None
            return True

    def done(self, offset: int) -> None:
        with self._lock:
            self._pending.pop(offset, None)

    def to_commit(self) -> tuple[int, str] | None:
        """Offset and metadata, where they differ from what was committed last."""
        with self._lock:
            offset = next(iter(self._pending), self._read_to)
            point = offset, write_note(offset, self._read_to, list(self._pending))
            return None if point == self._committed else point

    def committed(self, point: tuple[int, str]) -> None:
        with self._lock:
            self._committed = point

    @property
    def offset(self) -> int:
        """The offset committed last."""
        return self._committed[0]

    @property
    def position(self) -> int:
        """The first message not yet done."""
        with self._lock:
            return next(iter(self._pending), self._read_to)


@dataclass(frozen=True, slots=True)
class Start:
    """Where reading a partition begins. `alarm`: why it is not where it should be."""

    offset: int
    note: str | None = None
    alarm: str | None = None


def start_of(
    committed: tuple[int, str | None] | None,
    low: int,
    high: int,
    *,
    known: int | None,
    topic_is_new: bool,
    replay_missed: bool,
) -> Start:
    """Where to begin in a partition that the broker has from `low` to `high`.

    `committed`: the group's offset and note; `known`: where this process stood when it had the partition before;
    `topic_is_new`: it was not there yet when this process started, so all of it is for us.
    """
    if committed is not None and (replay_missed or known is not None):
        offset, note = committed
        if low <= offset <= high:
            return Start(offset, note)
        return Start(low, alarm=f"committed {offset}, the broker has {low} to {high}")
    if known is not None:
        # The group's offsets went away under a running process, and perhaps the topic began anew.
        return (
            Start(known)
            if low <= known <= high
            else Start(low, alarm=f"stood at {known}, the broker has {low} to {high}")
        )
    return Start(low if topic_is_new and replay_missed else high)


class Room:
    """How many messages and bytes are held. Full at the limit, and no longer when half of it is free."""

    def __init__(self, messages: int, size: int) -> None:
        self._most = messages, size
        self._held = [0, 0]
        self._lock = Lock()
        self._full = False

    def take(self, size: int) -> None:
        self._change(1, size)

    def give(self, size: int) -> None:
        self._change(-1, -size)

    def _change(self, messages: int, size: int) -> None:
        with self._lock:
            self._held[0] += messages
            self._held[1] += size
            share = max(held / most for held, most in zip(self._held, self._most, strict=True))
            self._full = share >= 1 or (self._full and share > 0.5)
            metrics.HELD.set(self._held[0])
            metrics.HELD_BYTES.set(self._held[1])

    @property
    def full(self) -> bool:
        return self._full
