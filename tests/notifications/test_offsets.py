"""The committed offset, in whatever order messages are settled; and the bounds of what is held in memory."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.notifications.config import Kafka
from market.notifications.consumer.memory import MemoryBudget
from market.notifications.consumer.offsets import (
    MAX_METADATA_LENGTH,
    CommitPoint,
    OffsetTracker,
    PartitionState,
    Position,
    decode_metadata,
    decode_topic_id,
    encode_metadata,
    start_position,
)
from market.notifications.domain import Message
from market.notifications.sent_log.log import RecentDigests, SentLog, put_back


@given(
    offsets=st.lists(st.integers(0, 500), unique=True, min_size=1, max_size=60).map(sorted),
    finished=st.sets(st.integers(0, 500)),
    seed=st.integers(0, 2**32),
)
def test_a_restart_processes_exactly_the_messages_that_are_not_settled(
    offsets: list[int], finished: set[int], seed: int
) -> None:
    start = offsets[0]
    first = OffsetTracker(0, start)
    assert all(first.add(offset) for offset in offsets)
    settled = [offset for offset in offsets if offset in finished]
    random.Random(seed).shuffle(settled)
    for offset in settled:
        first.settle(offset)
    unsettled = [offset for offset in offsets if offset not in finished]
    point = first.next_commit() or CommitPoint(start, "")
    assert point.offset == (unsettled[0] if unsettled else offsets[-1] + 1)
    second = OffsetTracker(0, point.offset, point.metadata)
    assert [offset for offset in offsets if offset >= point.offset and second.add(offset)] == unsettled
    for offset in unsettled:
        second.settle(offset)
    assert (second.next_commit() or CommitPoint(second.committed_offset, "")) == (offsets[-1] + 1, "")


@given(st.integers(0, 10**12), st.sets(st.integers(0, 10**7), min_size=1))
def test_metadata_that_is_too_long_forgets_settled_messages_and_never_unsettled_ones(
    offset: int, gaps: set[int]
) -> None:
    unsettled = sorted({offset, *(offset + gap for gap in gaps)})
    metadata = encode_metadata(offset, unsettled[-1] + 5, unsettled)
    assert len(metadata) <= MAX_METADATA_LENGTH + 80 < 4096
    read_to, decoded = decode_metadata(offset, metadata)
    assert decoded == [u for u in unsettled if u < read_to]


def test_long_metadata_is_truncated() -> None:
    unsettled = [n * 1000 for n in range(5_000)]
    read_to, decoded = decode_metadata(0, encode_metadata(0, 10**7, unsettled))
    assert 500 < len(decoded) < 1_000
    assert read_to == unsettled[len(decoded)]


@given(st.text() | st.from_regex(r"1;\d{0,3};[\d,;-]{0,9}", fullmatch=True))
def test_malformed_metadata_is_ignored(metadata: str) -> None:
    read_to, unsettled = decode_metadata(100, metadata)
    assert read_to >= 100
    assert all(100 <= offset < read_to for offset in unsettled)


def test_unsettled_messages_that_the_log_no_longer_has_do_not_block_the_commit() -> None:
    tracker = OffsetTracker(0, 10, encode_metadata(10, 20, [10, 12]))
    assert not tracker.add(15)
    assert tracker.add(25)
    tracker.settle(25)
    assert tracker.next_commit() == (26, "")


def test_there_is_nothing_to_commit_without_a_change() -> None:
    tracker = OffsetTracker(0, 7)
    assert tracker.next_commit() is None
    tracker.add(7)
    assert tracker.next_commit() is None
    tracker.add(8)
    tracker.settle(8)
    assert tracker.next_commit() == (7, "1;2;0")
    tracker.mark_committed(CommitPoint(7, "1;2;0"))
    assert tracker.next_commit() is None
    tracker.settle(7)
    assert tracker.next_commit() == (9, "")


def _start(topic_is_new: bool = False, replay_missed: bool = True, **changes: Any) -> tuple[int, str | None]:
    """Return offset and metadata, or why there was no usable offset, for a partition with offsets from 2 to 9."""
    state = PartitionState(**{"topic_id": "T", "low": 2, "high": 9, "offset_after_first_start": 3, **changes})
    start = start_position(state, topic_is_new=topic_is_new, replay_missed=replay_missed)
    return start.offset, start.metadata or start.no_offset_reason or (start.reset_reason and "out-of-range")


def test_consumption_starts_at_the_committed_offset_if_the_broker_still_has_it() -> None:
    assert _start(committed=(5, "1;0;;T")) == (5, "1;0;;T")
    # As the previous version committed it.
    assert _start(committed=(5, "1;2;0")) == (5, "1;2;0")
    assert _start(committed=(5, "")) == (5, None)
    assert _start(committed=(5, "1;0;;T"), topic_id="") == (5, "1;0;;T")
    assert _start(committed=(5, "n"), replay_missed=False) == (9, None)
    for committed in (1, 10):
        assert _start(committed=(committed, None)) == (3, "out-of-range")


def test_without_a_committed_offset_consumption_starts_at_the_end_only_at_the_first_start() -> None:
    assert _start(may_lack_offset=True) == (9, "first-start")
    assert _start(may_lack_offset=True, topic_is_new=True) == (2, "first-start")
    assert _start() == (3, "no-offset")
    assert _start(last_position=Position(4, "T")) == (4, "no-offset")
    assert _start(last_position=Position(4, "")) == (4, "no-offset")
    # The embedded broker was restarted empty while the consumer was running.
    assert _start(low=0, high=3, offset_after_first_start=0, last_position=Position(40, "")) == (0, "out-of-range")


def test_every_event_of_a_new_topic_is_mailed_also_without_replay_missed() -> None:
    assert _start(may_lack_offset=True, topic_is_new=True, replay_missed=False) == (2, "first-start")
    assert _start(topic_is_new=True, replay_missed=False) == (3, "no-offset")
    # Another process of the group has mailed the events before the committed offset.
    assert _start(committed=(5, "1;0;;T"), topic_is_new=True, replay_missed=False) == (5, "1;0;;T")


def test_another_topic_id_means_a_new_topic() -> None:
    assert _start(committed=(5, "1;0;;OLD")) == (3, "new-topic")
    assert _start(committed=(5, "1;2;0;OLD")) == (3, "new-topic")
    assert _start(last_position=Position(4, "OLD")) == (3, "new-topic")


def test_the_topic_id_is_kept_with_the_offset() -> None:
    tracker = OffsetTracker(0, 7, "", "T")
    assert tracker.next_commit() == (7, "1;0;;T")
    for offset in (7, 8):
        tracker.add(offset)
    tracker.settle(8)
    point = tracker.next_commit()
    assert point == (7, "1;2;0;T")
    assert decode_metadata(*point) == (9, [7])
    assert decode_topic_id(point.metadata) == "T"
    assert decode_topic_id("1;2;0") == decode_topic_id("") == decode_topic_id(None) == ""


def test_the_size_of_a_message_includes_the_content_of_its_headers() -> None:
    plain = Message("orders", 0, 0, b"key", b"value")
    with_headers = replace(plain, headers=(("baggage", b"x" * 8_000), ("empty", None)))
    assert with_headers.size - plain.size == 8_000 + len("baggage") + len("empty")


def test_a_batch_that_fits_only_in_part_loses_its_oldest_digests() -> None:
    for later, kept in ((0, b"abc"), (2, b"abc"), (3, b"bc"), (4, b"c"), (5, b"")):
        unwritten = deque([b"x"] * later, maxlen=5)
        put_back([b"a", b"b", b"c"], unwritten)
        assert b"".join(unwritten) == kept + b"x" * later


class SlowSentLog(SentLog):
    """A sent log in memory, whose writes wait for `may_write`."""

    def __init__(self) -> None:
        super().__init__(Kafka(bootstrap_servers="none"), max_ids=100)
        self.writing, self.may_write = asyncio.Event(), asyncio.Event()
        self.written: list[bytes] = []

    async def _write(self, _key: bytes | None, value: bytes | None) -> None:
        self.writing.set()
        await self.may_write.wait()
        assert value is not None
        self.written.append(value)

    def _load(self) -> RecentDigests:
        ids = RecentDigests(100)
        ids.add(self.written)
        return ids

    def _has(self, digest: bytes, _since: datetime | None) -> bool:
        return digest in self.written


@pytest.mark.parametrize("in_memory", [True, False])
async def test_an_event_whose_id_is_being_written_to_the_sent_log_is_found(in_memory: bool) -> None:
    sent_log = SlowSentLog()
    sent_log.add("mailed")
    lookup = sent_log.contains("mailed") if in_memory else sent_log.was_mailed("mailed", None)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(sent_log.flush())
        await sent_log.writing.wait()
        found = tasks.create_task(lookup)
        await asyncio.sleep(0)
        sent_log.may_write.set()
    assert found.result()


def test_memory_is_exhausted_at_its_limit_and_available_again_at_half_of_it() -> None:
    memory = MemoryBudget(4, 1_000)
    states = []
    for change in [memory.acquire] * 4 + [memory.release] * 2:
        change(10)
        states.append(memory.exhausted)
    assert states == [False, False, False, True, True, False]
    memory.acquire(980)
    assert memory.exhausted
