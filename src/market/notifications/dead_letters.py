"""`python -m market.notifications dead-letters`: what could not be mailed, and what becomes of it.

Kafka deletes no single message, so a letter that is replayed or dropped gets a mark: a record without a
value in the same partition that names the letter (clients.MARK_OF). A letter is open while no mark
names it. Both expire by the topic's retention, the mark after its letter.

`replay` mails the letter at once, with the Message-ID that it would have had, instead of publishing it
again: the answer is seen here, and no other reader of the topic meets the event twice.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from market.kit.faults import clock
from market.notifications import clients
from market.notifications.clients import DeadLetters, as_bytes, headers_of
from market.notifications.config import Config
from market.notifications.domain import MailServerAway, Message, Refused, RefusedForNow, Unreadable
from market.notifications.mails import Composer
from market.notifications.service import Mailing
from market.notifications.smtp import MailServer

_OURS = {clients.REASON, clients.TIME, clients.TOPIC, clients.PARTITION, clients.OFFSET, clients.OMITTED}
READ_SECONDS = 10.0


@dataclass(slots=True)
class Letter:
    """A dead letter. `id` is where it lies: partition-offset of the dead letter topic."""

    partition: int
    offset: int
    key: bytes | None
    size: int
    headers: tuple[tuple[str, bytes | None], ...]
    # replayed or dropped, and when.
    done: tuple[str, str] | None = None

    @property
    def id(self) -> str:
        return f"{self.partition}-{self.offset}"

    def header(self, name: str) -> str:
        return next(
            (v.decode("utf-8", "replace") for k, v in reversed(self.headers) if k == name and v is not None), ""
        )

    def summary(self) -> dict[str, Any]:
        origin = {"topic": self.header(clients.TOPIC), "partition": _number(self.header(clients.PARTITION))}
        return {
            "id": self.id,
            "time": self.header(clients.TIME),
            "reason": self.header(clients.REASON),
            "key": None if self.key is None else self.key.decode("utf-8", "replace"),
            "origin": {**origin, "offset": _number(self.header(clients.OFFSET))},
            "bytes": self.size,
            "status": self.done[0] if self.done else "open",
            "done_at": self.done[1] if self.done else None,
        }


class Box:
    """Reads the dead letter topic from its beginning to its end. Commits nothing, belongs to no group's assignment."""

    def __init__(self, config: Config) -> None:
        self._topic = config.kafka.dead_letter_topic
        self._consumer = Consumer(
            {
                **clients.connection(config.kafka),
                "group.id": f"{config.kafka.group}-dead-letters",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "allow.auto.create.topics": False,
                "queued.max.messages.kbytes": 16 * 1024,
            }
        )

    def close(self) -> None:
        self._consumer.close()

    def letters(self) -> list[Letter]:
        """All that are kept, oldest first, with what became of them; their values stay in the topic. Raises KafkaException."""
        found: dict[str, Letter] = {}
        for record in self._records():
            partition, offset = record.partition(), record.offset()
            assert partition is not None
            assert offset is not None
            letter = Letter(partition, offset, as_bytes(record.key()), len(record.value() or b""), headers_of(record))
            if of := letter.header(clients.MARK_OF):
                if of in found and found[of].done is None:
                    found[of].done = letter.header(clients.MARK_ACTION), letter.header(clients.TIME)
            else:
                found[letter.id] = letter
        return sorted(found.values(), key=lambda letter: (letter.header(clients.TIME), letter.partition, letter.offset))

    def original(self, letter: Letter) -> Message:
        """The message as it was when it was put aside. Raises KafkaException; LookupError where the topic no longer has it."""
        topic, partition, offset = self._topic, letter.partition, letter.offset
        origin = (
            letter.header(clients.TOPIC),
            _number(letter.header(clients.PARTITION)),
            _number(letter.header(clients.OFFSET)),
        )
        if letter.header(clients.OMITTED):
            topic, partition, offset = origin
        record = self._one(topic, partition, offset)
        headers = tuple((k, v) for k, v in letter.headers if k not in _OURS)
        return Message(origin[0], origin[1], origin[2], as_bytes(record.key()), as_bytes(record.value()), headers)

    def _records(self) -> Iterator[KafkaMessage]:
        topic = self._consumer.list_topics(self._topic, timeout=READ_SECONDS).topics[self._topic]
        if topic.error is not None and topic.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return
        ends = {}
        for partition in topic.partitions:
            low, high = self._consumer.get_watermark_offsets(
                TopicPartition(self._topic, partition), timeout=READ_SECONDS
            )
            if low < high:
                ends[partition] = low, high
        self._consumer.assign([TopicPartition(self._topic, p, low) for p, (low, _) in ends.items()])
        while ends:
            record = self._consumer.poll(READ_SECONDS)
            if record is None:
                raise TimeoutError(f"{self._topic}: no answer within {READ_SECONDS:.0f} s")
            partition = record.partition()
            error = record.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            if error is None and partition in ends and (record.offset() or 0) < ends[partition][1]:
                yield record
            if partition in ends and (error is not None or (record.offset() or 0) >= ends[partition][1] - 1):
                del ends[partition]

    def _one(self, topic: str, partition: int, offset: int) -> KafkaMessage:
        self._consumer.assign([TopicPartition(topic, partition, offset)])
        record = self._consumer.poll(READ_SECONDS)
        if record is None or record.error() is not None or record.offset() != offset:
            raise LookupError(f"{topic} no longer has the message at {partition}-{offset}")
        return record


async def dead_letters(config: Config, args: list[str]) -> int:
    """The command. Exit status 0: done; 1: something stays open that should not; 2: used wrongly."""
    try:
        options = _parser().parse_args(args)
    except SystemExit as e:
        return int(e.code or 0)
    box = Box(config)
    try:
        letters = await asyncio.to_thread(box.letters)
        if options.verb == "list":
            return _list([x for x in letters if options.all or x.done is None], options.json)
        if options.verb in ("replay", "drop") and options.all == bool(options.ids):
            return _complain("name the letters by their ids, or give --all")
        by_id = {letter.id: letter for letter in letters}
        chosen = [x for x in letters if x.done is None] if options.verb != "show" and options.all else []
        for id in options.ids:
            if id not in by_id:
                return _complain(f"there is no dead letter {id}")
            chosen.append(by_id[id])
        if options.verb == "show":
            return await _show(box, chosen, options.json)
        return await _settle(config, box, chosen, options.verb, options.json)
    except (KafkaException, TimeoutError, LookupError) as e:
        text = e.args[0].str() if isinstance(e, KafkaException) else str(e)
        return _complain(f"kafka at {config.kafka.bootstrap_servers}: {text}", status=1)
    finally:
        await asyncio.to_thread(box.close)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dead-letters", description="What could not be mailed. An id is what `list` shows."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    listing = verbs.add_parser("list", help="the open letters, oldest first")
    listing.add_argument("--all", action="store_true", help="those that are replayed or dropped too")
    show = verbs.add_parser("show", help="letters whole, with the original message")
    show.add_argument("ids", nargs="+", metavar="ID")
    replay = verbs.add_parser("replay", help="try to mail them now; what is accepted is done")
    drop = verbs.add_parser("drop", help="done with, without a mail")
    for verb in (replay, drop):
        verb.add_argument("ids", nargs="*", metavar="ID")
        verb.add_argument("--all", action="store_true", help="all that are open")
    for verb in (listing, show, replay, drop):
        verb.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


def _list(letters: list[Letter], as_json: bool) -> int:
    if as_json:
        _print_json(letter.summary() for letter in letters)
        return 0
    for letter in letters:
        s = letter.summary()
        status = "" if s["status"] == "open" else f"  [{s['status']} {s['done_at']}]"
        origin = s["origin"]
        _print(
            f"{s['id']:>8}  {s['time']}  {s['key'] or '-'}  {origin['topic']}/{origin['partition']}/{origin['offset']}  {s['reason']}{status}"
        )
    _print(f"{len(letters)} dead letter{'' if len(letters) == 1 else 's'}")
    return 0


async def _show(box: Box, letters: list[Letter], as_json: bool) -> int:
    for letter in letters:
        shown = letter.summary()
        try:
            original = await asyncio.to_thread(box.original, letter)
        except LookupError as e:
            shown["value"], shown["value_missing"] = None, str(e)
        else:
            shown["headers"] = {k: None if v is None else v.decode("utf-8", "replace") for k, v in original.headers}
            shown["value"] = None if original.value is None else original.value.decode("utf-8", "replace")
        if as_json:
            _print_json([shown])
        else:
            for name, value in shown.items():
                _print(f"{name}: {value}")
            _print("")
    return 0


async def _settle(config: Config, box: Box, letters: list[Letter], verb: str, as_json: bool) -> int:
    """Replays or drops; each letter is marked before the next begins, so that a break repeats one mail at most."""
    now = clock(config.faults)
    server = MailServer(config.smtp, config.mail.address)
    box_writer = DeadLetters(config.kafka)
    mailing = Mailing(server, Composer(config.mail), box_writer.write, config.retry, now)
    failed = 0
    try:
        for letter in letters:
            result: dict[str, Any] = {"id": letter.id, "result": "dropped" if verb == "drop" else "replayed"}
            if letter.done is not None:
                result["result"] = f"already {letter.done[0]}"
            elif verb == "replay" and (reason := await _mail(box, mailing, letter)) is not None:
                failed += 1
                result |= {"result": "open", "reason": reason}
            else:
                await _mark(box_writer, letter, result["result"], now)
            if as_json:
                _print_json([result])
            else:
                _print(": ".join(str(part) for part in result.values()))
    finally:
        await server.close()
        await box_writer.close()
    return 1 if failed else 0


async def _mail(box: Box, mailing: Mailing, letter: Letter) -> str | None:
    """None where the mail server took it, or why it stays open."""
    try:
        await mailing.mail(await asyncio.to_thread(box.original, letter))
    except Unreadable as e:
        return f"unreadable: {e}"
    except (Refused, RefusedForNow) as e:
        return f"refused: {e}"
    except MailServerAway as e:
        return f"the mail server is away: {e}"
    except LookupError as e:
        return str(e)
    return None


async def _mark(letters: DeadLetters, letter: Letter, action: str, now: Callable[[], datetime]) -> None:
    await letters.mark(letter.partition, letter.offset, letter.key, action, now())


def _complain(text: str, status: int = 2) -> int:
    print(f"dead-letters: {text}", file=sys.stderr)
    return status


def _print(line: str) -> None:
    # What came from outside must not steer the terminal.
    print("".join(c if c.isprintable() else "\ufffd" for c in line))


def _print_json(objects: Any) -> None:
    for item in objects:
        print(msgspec.json.encode(item).decode())


def _number(text: str) -> int:
    with suppress(ValueError):
        return int(text)
    return -1
