"""What is written to HTTP connections in one iteration of the event loop is sent together."""

import asyncio
from collections.abc import Iterable

import pytest

from market.kit.http.writes import QueuedTransport, WriteQueue

Sent = list[tuple[str, object]]


class RecordingTransport(asyncio.Transport):
    """Records each call to the system in `sent`, which several transports may share. Fails if `broken`."""

    def __init__(self, name: str, sent: Sent, *, broken: bool = False) -> None:
        super().__init__()
        self.name = name
        self.sent = sent
        self.broken = broken

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.broken:
            raise RuntimeError("cannot call write() after write_eof()")
        self.sent.append((self.name, bytes(data)))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.sent.append((self.name, [bytes(data) for data in list_of_data]))

    def close(self) -> None:
        self.sent.append((self.name, "close"))

    def abort(self) -> None:
        self.sent.append((self.name, "abort"))

    def write_eof(self) -> None:
        self.sent.append((self.name, "eof"))

    def get_write_buffer_size(self) -> int:
        return 5


@pytest.fixture
def sent() -> Sent:
    return []


async def test_all_writes_of_an_iteration_are_sent_at_its_end_and_those_to_one_connection_in_one_call(
    sent: Sent,
) -> None:
    queue = WriteQueue()
    a, b = (QueuedTransport(RecordingTransport(name, sent), queue) for name in "ab")
    a.write(b"headers")
    b.write(b"request")
    a.write(b"body")
    assert (sent, a.get_write_buffer_size(), b.get_write_buffer_size()) == ([], 16, 12)

    await asyncio.sleep(0)

    assert sent == [("a", [b"headers", b"body"]), ("b", b"request")]
    assert a.get_write_buffer_size() == 5
    a.write(b"next")
    await asyncio.sleep(0)
    assert sent[2:] == [("a", b"next")]


async def test_what_was_written_is_sent_before_the_connection_is_closed(sent: Sent) -> None:
    queue = WriteQueue()
    a, b = (QueuedTransport(RecordingTransport(name, sent), queue) for name in "ab")
    a.write(b"response")
    a.close()
    b.write(b"response")
    b.write_eof()

    assert sent == [("a", b"response"), ("a", "close"), ("b", b"response"), ("b", "eof")]
    await asyncio.sleep(0)
    assert len(sent) == 4


async def test_nothing_is_sent_after_the_connection_was_aborted(sent: Sent) -> None:
    transport = QueuedTransport(RecordingTransport("a", sent), WriteQueue())
    transport.write(b"response")
    transport.abort()

    await asyncio.sleep(0)

    assert sent == [("a", "abort")]


@pytest.mark.parametrize("parts", [[b"x" * 65537], [b"headers", b"x" * 65536], [b"x" * 40000] * 2])
async def test_much_data_is_sent_at_once_so_that_flow_control_notices_it(parts: list[bytes], sent: Sent) -> None:
    transport = QueuedTransport(RecordingTransport("a", sent), WriteQueue())

    transport.writelines(parts)

    assert sent == [("a", parts if len(parts) > 1 else parts[0])]


async def test_a_connection_that_cannot_be_written_to_is_aborted_and_the_others_get_their_data(sent: Sent) -> None:
    queue = WriteQueue()
    broken, other = RecordingTransport("broken", sent, broken=True), RecordingTransport("other", sent)
    queue.write(broken, b"lost")
    queue.write(other, b"response")

    await asyncio.sleep(0)

    assert sent == [("broken", "abort"), ("other", b"response")]
