"""`python -m market.notifications dead-letters`: list, show, replay or drop dead letters."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable
from typing import Any

import msgspec
from confluent_kafka import KafkaException

from market.kit.clock import clock
from market.kit.process.tracing import Tracer
from market.notifications.config import Config
from market.notifications.dead_letters.letters import DeadLetter, DeadLetterLog
from market.notifications.dead_letters.reader import DeadLetterReader
from market.notifications.dead_letters.replaying import Action, Outcome, ReplayDeps, open_reader, resolve
from market.notifications.dead_letters.writer import DeadLetterWriter
from market.notifications.mail.mailer import Mailer
from market.notifications.sent_log.log import SentLog
from market.notifications.service import Deps

_OK, _FAILED, _USAGE_ERROR = 0, 1, 2


async def dead_letters(config: Config, args: list[str]) -> int:
    """Run the command, and return its exit status.

    0: success. 1: a dead letter could not be replayed or dropped, or Kafka failed. 2: the arguments are invalid.
    """
    try:
        options = _parser().parse_args(args)
    except SystemExit as e:
        return int(e.code or 0)
    try:
        async with open_reader(config.kafka, config.dead_letters) as reader:
            return await _run(config, reader, options)
    except (KafkaException, TimeoutError) as e:
        reason = e.args[0].str() if isinstance(e, KafkaException) else str(e)
        return _fail(f"Kafka at {config.kafka.bootstrap_servers}: {reason}", status=_FAILED)


async def _run(config: Config, reader: DeadLetterReader, options: argparse.Namespace) -> int:
    letter_log = await asyncio.to_thread(reader.read_all)
    letters = letter_log.oldest_first()
    unresolved = [letter for letter in letters if letter.resolution is None]
    if options.subcommand == "list":
        return _list(letters if options.all else unresolved, options.json)
    if options.subcommand in ("replay", "drop") and options.all == bool(options.ids):
        return _fail("give either the ids of dead letters or --all")
    unknown = [letter_id for letter_id in options.ids if letter_id not in letter_log.letters]
    if unknown:
        return _fail(f"there is no dead letter {unknown[0]}")
    chosen = [letter_log.letters[letter_id] for letter_id in options.ids]
    if options.subcommand == "show":
        return await _show(reader, chosen, options.json)
    action: Action = "dropped" if options.subcommand == "drop" else "replayed"
    return await _resolve(config, reader, letter_log, chosen or unresolved, action, options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dead-letters", description="Events that could not be mailed. `list` shows their ids."
    )
    subcommands = parser.add_subparsers(dest="subcommand", required=True)
    listing = subcommands.add_parser("list", help="list the open dead letters, oldest first")
    listing.add_argument("--all", action="store_true", help="include those that were replayed or dropped")
    show = subcommands.add_parser("show", help="show dead letters with the original message")
    show.add_argument("ids", nargs="+", metavar="ID")
    replay = subcommands.add_parser(
        "replay",
        help="mail dead letters now; those that the mail server accepts, or that need no mail, are marked as done",
    )
    drop = subcommands.add_parser("drop", help="mark dead letters as done without mailing them")
    for subcommand in (replay, drop):
        subcommand.add_argument("ids", nargs="*", metavar="ID")
        subcommand.add_argument("--all", action="store_true", help="all open dead letters")
    for subcommand in (listing, show, replay, drop):
        subcommand.add_argument("--json", action="store_true", help="print one JSON object per line")
    return parser


def _list(letters: list[DeadLetter], as_json: bool) -> int:
    if as_json:
        _print_json(letter.summary() for letter in letters)
        return _OK
    for letter in letters:
        summary = letter.summary()
        origin = "/".join(map(str, letter.origin))
        status = f"  [{letter.resolution.action} {letter.resolution.at}]" if letter.resolution else ""
        _print(f"{letter.id:>8}  {summary['time']}  {summary['key'] or '-'}  {origin}  {summary['reason']}{status}")
    _print(f"{len(letters)} dead letter{'' if len(letters) == 1 else 's'}")
    return _OK


async def _show(reader: DeadLetterReader, letters: list[DeadLetter], as_json: bool) -> int:
    for letter in letters:
        shown = letter.summary()
        try:
            original = await asyncio.to_thread(reader.original_message, letter)
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
    return _OK


async def _resolve(
    config: Config,
    reader: DeadLetterReader,
    letter_log: DeadLetterLog,
    letters: list[DeadLetter],
    action: Action,
    as_json: bool,
) -> int:
    """Replay or drop dead letters, and return the exit status.

    Each is marked as done before the next one is replayed, so that an interrupted command repeats at most one mail when
    it is run again.
    """
    mailer = Mailer(config)
    writer = DeadLetterWriter(config.kafka)
    sent_log = SentLog(config.kafka, max_ids=config.kafka.sent_log_max_ids)
    mailing_deps = Deps(mailer, writer, config.retry, clock(config.faults), Tracer())
    deps = ReplayDeps(config.kafka, config.dead_letters, writer, sent_log, mailing_deps)
    status = _OK
    try:
        for letter in letters:
            outcome = await resolve(deps, reader, letter_log, letter, action)
            if outcome.result == "open":
                status = _FAILED
            result = _describe(letter, outcome)
            if as_json:
                _print_json([result])
            else:
                _print(": ".join(result.values()))
    finally:
        await mailer.close()
        await sent_log.close()
        await writer.close()
    return status


def _describe(letter: DeadLetter, outcome: Outcome) -> dict[str, str]:
    """Return the fields that `replay --json` and `drop --json` print."""
    if outcome.reason is not None:
        return {"id": letter.id, "result": "open", "reason": f"{outcome.reason.replace('-', ' ')}: {outcome.detail}"}
    if outcome.result == "mailed":
        return {"id": letter.id, "result": "replayed"}
    if outcome.result in ("mailed-before", "not-needed"):
        words = {"mailed-before": "it was mailed before", "not-needed": "it needs no mail"}
        return {"id": letter.id, "result": "replayed", "reason": words[outcome.result]}
    return {"id": letter.id, "result": outcome.result.replace("-", " ")}


def _fail(reason: str, status: int = _USAGE_ERROR) -> int:
    print(f"dead-letters: {reason}", file=sys.stderr)
    return status


def _print(line: str) -> None:
    # Text of others, such as a mail server's reply, could contain control characters for the terminal.
    print("".join(c if c.isprintable() else "\ufffd" for c in line))


def _print_json(objects: Iterable[Any]) -> None:
    for item in objects:
        print(msgspec.json.encode(item).decode())
