"""The mails on disk: one file that only grows, so that a killed sink has lost none that it accepted."""

from __future__ import annotations

import asyncio
import os
import zlib
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from market.kit.batching import Batcher
from market.kit.ids import new_id


class Envelope(msgspec.Struct, frozen=True):
    """What stands before each mail in the file, on one line."""

    id: str
    sender: str
    recipients: list[str]
    received_at: datetime
    size: int
    crc: int


class _Index:
    """Where each mail stands, in 28 bytes a mail: what takes mails for days must not grow with them.

    One thread adds while another looks: what is only half added is not found yet.
    """

    def __init__(self) -> None:
        # Of the line with its envelope.
        self.starts = array("Q")
        # The lower half of its id.
        self._ids = array("Q")
        # Each recipient's hash, and the number of the mail.
        self._recipients = array("q")
        self._numbers = array("I")

    def add(self, envelope: Envelope, start: int) -> None:
        number = len(self.starts)
        self.starts.append(start)
        self._ids.append(_half(envelope.id))
        for recipient in {hash(r.casefold()) for r in envelope.recipients}:
            self._recipients.append(recipient)
            self._numbers.append(number)

    def to(self, recipient: str) -> list[int]:
        """Where the mails to this address stand, oldest first."""
        wanted = hash(recipient.casefold())
        return [
            self.starts[number]
            for known, number in zip(self._recipients, self._numbers, strict=False)
            if known == wanted
        ]

    def of(self, id: str) -> list[int]:
        """Where the mail of this id may stand."""
        try:
            wanted = _half(id)
        except ValueError:
            return []
        return [start for known, start in zip(self._ids, self.starts, strict=False) if known == wanted]


def _half(id: str) -> int:
    return UUID(id).int & 0xFFFF_FFFF_FFFF_FFFF


class Mailbox:
    """All mails, oldest first. `add` returns once the mail is on the disk; those that wait share one write."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "mails.log"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._index = _Index()
        self._end = self._recover()
        # One thread, so that writes and the emptying stay in order.
        self._writer = ThreadPoolExecutor(1, "mailbox")
        self._write = Batcher(self._write_all, name="mailsink.write", max_batch_size=512)

    def _recover(self) -> int:
        """Reads the index; a mail that was being written when the sink died was never acknowledged and is cut off."""
        end = 0
        with self._path.open("rb") as file:
            while line := file.readline():
                try:
                    envelope = msgspec.json.decode(line, type=Envelope)
                except msgspec.DecodeError:
                    break
                raw = file.read(envelope.size)
                if file.read(1) != b"\n" or zlib.crc32(raw) != envelope.crc:
                    break
                self._index.add(envelope, end)
                end += len(line) + envelope.size + 1
        os.ftruncate(self._file, end)
        os.fsync(self._file)
        folder = os.open(self._path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        return end

    async def add(self, sender: str, recipients: Sequence[str], raw: bytes) -> str:
        """Keeps the mail and answers its id. Raises OSError where the disk refuses."""
        envelope = Envelope(str(new_id()), sender, list(recipients), datetime.now(UTC), len(raw), zlib.crc32(raw))
        await self._write((envelope, raw))
        return envelope.id

    async def _write_all(self, mails: list[tuple[Envelope, bytes]]) -> list[None]:
        await asyncio.get_running_loop().run_in_executor(self._writer, self._append, mails)
        return [None] * len(mails)

    def _append(self, mails: list[tuple[Envelope, bytes]]) -> None:
        kept, parts, end = [], [], self._end
        for envelope, raw in mails:
            line = msgspec.json.encode(envelope) + b"\n"
            kept.append((envelope, end))
            parts += [line, raw, b"\n"]
            end += len(line) + len(raw) + 1
        data = memoryview(b"".join(parts))
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fdatasync(self._file)
        except OSError:
            # Half a mail must not stand in front of the next one.
            os.ftruncate(self._file, self._end)
            raise
        self._end = end
        for envelope, start in kept:
            self._index.add(envelope, start)

    async def clear(self) -> None:
        def empty() -> None:
            os.ftruncate(self._file, 0)
            os.fsync(self._file)
            self._index, self._end = _Index(), 0

        await asyncio.get_running_loop().run_in_executor(self._writer, empty)

    def page(self, to: str | None, limit: int, offset: int) -> tuple[list[dict[str, Any]], int]:
        """Mails newest first, only those to the address `to` where it is given; and how many there are in all."""
        starts: Sequence[int] = self._index.to(to) if to else self._index.starts
        total = len(starts)
        chosen = starts[max(0, total - offset - limit) : max(0, total - offset)]
        return [_shown(*found) for start in reversed(chosen) if (found := self._read(start))], total

    def raw(self, id: str) -> bytes | None:
        """The mail as it was received."""
        for start in self._index.of(id):
            found = self._read(start)
            if found and found[0].id == id:
                return found[1]
        return None

    def _read(self, start: int) -> tuple[Envelope, bytes] | None:
        """The mail that stands there; None: the file was emptied meanwhile."""
        size = 4096
        while (length := (data := os.pread(self._file, size, start)).find(b"\n")) < 0:
            if len(data) < size:
                return None
            # An envelope with many recipients.
            size *= 4
        try:
            envelope = msgspec.json.decode(data[:length], type=Envelope)
        except msgspec.DecodeError:
            # Emptied, and filled anew.
            return None
        return envelope, os.pread(self._file, envelope.size, start + length + 1)


def _shown(envelope: Envelope, raw: bytes) -> dict[str, Any]:
    mail = BytesParser(_class=EmailMessage, policy=policy.default).parsebytes(raw)
    headers: dict[str, str] = {}
    for name, value in mail.items():
        headers[name] = f"{headers[name]}, {value}" if name in headers else str(value)
    return {
        "id": envelope.id,
        "from": envelope.sender,
        "to": envelope.recipients,
        "subject": headers.get("Subject", ""),
        "message_id": headers.get("Message-ID", ""),
        "date": envelope.received_at.isoformat().replace("+00:00", "Z"),
        "headers": headers,
        "text": _body(mail, "plain"),
        "html": _body(mail, "html"),
    }


def _body(mail: EmailMessage, kind: str) -> str:
    part = mail.get_body((kind,))
    if part is None:
        return ""
    try:
        return str(part.get_content())
    except (LookupError, ValueError):  # An unknown charset.
        payload = part.get_payload(decode=True)
        return payload.decode("latin-1") if isinstance(payload, bytes) else ""
