"""What marks and claims mean: the state of a dead letter, from the records about it in their order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from market.notifications.dead_letters import writer
from market.notifications.dead_letters.letters import DeadLetter, DeadLetterLog
from market.notifications.dead_letters.reader import share
from market.notifications.domain import Message, mask_addresses

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Topic:
    """A partition whose first record is a dead letter."""

    def __init__(self) -> None:
        self.log = DeadLetterLog()
        self._offset = 0
        self._add([(writer.REASON, "rejected: 550"), (writer.TIME, NOON.isoformat())], value=b"{}")

    @property
    def letter(self) -> DeadLetter:
        [letter] = self.log.letters.values()
        return letter

    def claim(self, token: str, minute: float, until: float) -> None:
        self._change(writer.CLAIMED, token, minute, (writer.CLAIM_UNTIL, _at(until)))

    def release(self, token: str, minute: float) -> None:
        self._change(writer.RELEASED, token, minute)

    def mark(self, action: str, minute: float) -> None:
        self._add([(writer.MARK_OF, "0-0"), (writer.MARK_ACTION, action), (writer.TIME, _at(minute))])

    def _change(self, action: str, token: str, minute: float, *others: tuple[str, str]) -> None:
        headers = [(writer.MARK_OF, "claim"), (writer.CLAIM_OF, "0-0"), (writer.CLAIM_TOKEN, token)]
        self._add([*headers, (writer.MARK_ACTION, action), (writer.TIME, _at(minute)), *others])

    def _add(self, headers: list[tuple[str, str]], value: bytes | None = None) -> None:
        encoded = tuple((name, text.encode()) for name, text in headers)
        self.log.add(Message("dead", 0, self._offset, b"k", value, encoded))
        self._offset += 1


def _at(minute: float) -> str:
    return (NOON + timedelta(minutes=minute)).isoformat()


def holder(topic: Topic) -> str | None:
    return None if topic.letter.claim is None else topic.letter.claim.token


def test_the_first_claim_holds_until_it_is_released_by_its_own_token() -> None:
    topic = Topic()
    topic.claim("a", 0, until=2)
    topic.claim("b", 1, until=3)
    assert holder(topic) == "a"
    topic.release("b", 1)
    assert holder(topic) == "a"
    topic.release("a", 1)
    assert holder(topic) is None
    topic.claim("b", 1, until=3)
    assert holder(topic) == "b"


@pytest.mark.parametrize(("minute", "expected"), [(1.9, "a"), (2, "a"), (2.1, "b")])
def test_a_claim_that_has_expired_gives_way_to_the_next_one(minute: float, expected: str) -> None:
    topic = Topic()
    topic.claim("a", 0, until=2)
    topic.claim("b", minute, until=9)
    assert holder(topic) == expected


def test_the_first_mark_says_what_was_done_and_claims_do_not() -> None:
    topic = Topic()
    topic.claim("a", 0, until=2)
    assert topic.letter.resolution is None
    topic.mark("replayed", 1)
    topic.mark("dropped", 1.5)
    assert topic.letter.resolution == ("replayed", _at(1))


def test_earlier_versions_take_a_claim_for_a_mark_of_a_dead_letter_that_does_not_exist() -> None:
    topic = Topic()
    # They only know MARK_OF, and ignore it unless it names a dead letter.
    assert writer._NO_DEAD_LETTER.decode() not in topic.log.letters
    assert "-" not in writer._NO_DEAD_LETTER.decode()


@pytest.mark.parametrize(
    ("lengths", "total", "expected"),
    [
        ({}, 10, {}),
        ({0: 3, 1: 4}, 10, {0: 3, 1: 4}),
        ({0: 100, 1: 100}, 10, {0: 5, 1: 5}),
        ({0: 1, 1: 100, 2: 100}, 11, {0: 1, 1: 5, 2: 5}),
        ({0: 0, 1: 7}, 5, {0: 0, 1: 5}),
    ],
)
def test_partitions_share_what_may_be_read(lengths: dict[int, int], total: int, expected: dict[int, int]) -> None:
    assert share(lengths, total) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("550 5.1.1 <ann.lee@example.com>: no such user", "550 5.1.1 <a***@example.com>: no such user"),
        ('550 "ann lee"@example.com unknown', "550 a***@example.com unknown"),
        ("a@b.test, c+d@e.test", "a***@b.test, c***@e.test"),
        ("имя@пример.рф", "и***@пример.рф"),
        ("no address @ all", "no address @ all"),
    ],
)
def test_addresses_in_a_text_are_masked(text: str, expected: str) -> None:
    assert mask_addresses(text) == expected
