"""The offset committed is that of the first message not yet done, whatever the order of the answers."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from market.notifications.progress import MOST_NOTE, Progress, Room, Start, read_note, start_of, write_note


@given(
    offsets=st.lists(st.integers(0, 500), unique=True, min_size=1, max_size=60).map(sorted),
    finished=st.sets(st.integers(0, 500)),
    seed=st.integers(0, 2**32),
)
def test_a_restart_meets_each_message_not_done_and_none_that_was_done(
    offsets: list[int], finished: set[int], seed: int
) -> None:
    start = offsets[0]
    first = Progress(0, start)
    assert all(first.take(o) for o in offsets)
    done = [o for o in offsets if o in finished]
    random.Random(seed).shuffle(done)
    for offset in done:
        first.done(offset)
    left = [o for o in offsets if o not in finished]
    offset, note = first.to_commit() or (start, "")
    assert offset == (left[0] if left else offsets[-1] + 1)
    second = Progress(0, offset, note)
    assert [o for o in offsets if o >= offset and second.take(o)] == left
    for o in left:
        second.done(o)
    end, rest = second.to_commit() or (second.offset, "")
    assert (end, rest) == (offsets[-1] + 1, "")


@given(st.integers(0, 10**12), st.sets(st.integers(0, 10**7), min_size=1))
def test_a_note_that_is_too_long_forgets_what_is_done_and_never_what_is_not(offset: int, gaps: set[int]) -> None:
    pending = sorted({offset, *(offset + g for g in gaps)})
    note = write_note(offset, pending[-1] + 5, pending)
    assert len(note) <= MOST_NOTE + 40 < 4096
    end, read = read_note(offset, note)
    assert read == [p for p in pending if p < end]


def test_a_long_note_is_cut() -> None:
    pending = [n * 1000 for n in range(5_000)]
    end, read = read_note(0, write_note(0, 10**7, pending))
    assert 500 < len(read) < 1_000
    assert end == pending[len(read)]


@given(st.text() | st.from_regex(r"1;\d{0,3};[\d,;-]{0,9}", fullmatch=True))
def test_a_note_of_someone_else_says_nothing(note: str) -> None:
    end, pending = read_note(100, note)
    assert end >= 100
    assert all(100 <= p < end for p in pending)


def test_what_a_note_waits_for_and_the_log_no_longer_has_holds_nothing_up() -> None:
    progress = Progress(0, 10, write_note(10, 20, [10, 12]))
    assert not progress.take(15)
    assert progress.take(25)
    progress.done(25)
    assert progress.to_commit() == (26, "")


def test_nothing_new_is_nothing_to_commit() -> None:
    progress = Progress(0, 7)
    assert progress.to_commit() is None
    progress.take(7)
    assert progress.to_commit() is None
    progress.take(8)
    progress.done(8)
    assert progress.to_commit() == (7, "1;2;0")
    progress.committed((7, "1;2;0"))
    assert progress.to_commit() is None
    progress.done(7)
    assert progress.to_commit() == (9, "")


def test_where_reading_begins() -> None:
    usual = {"known": None, "topic_is_new": False, "replay_missed": True}
    assert start_of(None, 2, 9, **usual) == Start(9)
    assert start_of((5, "n"), 2, 9, **usual) == Start(5, "n")
    assert start_of(None, 0, 9, **{**usual, "topic_is_new": True}) == Start(0)
    assert start_of((5, "n"), 2, 9, **{**usual, "replay_missed": False}) == Start(9)
    assert start_of(None, 2, 9, **{**usual, "known": 4}) == Start(4)
    for committed in (1, 10):
        start = start_of((committed, None), 2, 9, **usual)
        assert (start.offset, bool(start.alarm)) == (2, True)
    # The embedded broker came back empty under a running consumer.
    assert start_of(None, 0, 3, **{**usual, "known": 40}).offset == 0


def test_room_is_full_at_its_limit_and_free_again_at_half_of_it() -> None:
    room = Room(4, 1_000)
    states = []
    for change in (room.take, room.take, room.take, room.take, room.give, room.give):
        change(10)
        states.append(room.full)
    assert states == [False, False, False, True, True, False]
    room.take(980)
    assert room.full
