"""Stores mails in one append-only file, so that a killed process has lost none that it accepted."""

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
    """The line of JSON before each mail in the file."""

    id: str
    sender: str
    recipients: list[str]
    received_at: datetime
    size: int
    crc: int


class _Index:
    """The offset of each mail in the file, in 28 bytes per mail, so that memory stays small over days.

    One thread may add while another reads: a partly added mail is not found yet.
    """

    def __init__(self) -> None:
        # The offset of each envelope.
        self.offsets = array("Q")
        # The lower 64 bits of each id.
        self._ids = array("Q")
        # The hash of each recipient, and the index of its mail.
        self._recipients = array("q")
        self._indexes = array("I")

    def add(self, envelope: Envelope, offset: int) -> None:
        index = len(self.offsets)
        self.offsets.append(offset)
        self._ids.append(_low_bits(envelope.id))
        for recipient in {hash(r.casefold()) for r in envelope.recipients}:
            self._recipients.append(recipient)
            self._indexes.append(index)

    def by_recipient(self, recipient: str) -> list[int]:
        """Return the offsets of the mails to this address, oldest first; hash collisions are possible."""
        wanted = hash(recipient.casefold())
        return [
            self.offsets[index]
            for known, index in zip(self._recipients, self._indexes, strict=False)
            if known == wanted
        ]

    def by_id(self, mail_id: str) -> list[int]:
        """Return the offsets at which the mail may be."""
        try:
            wanted = _low_bits(mail_id)
        except ValueError:
            return []
        return [offset for known, offset in zip(self._ids, self.offsets, strict=False) if known == wanted]


def _low_bits(mail_id: str) -> int:
    return UUID(mail_id).int & 0xFFFF_FFFF_FFFF_FFFF


class Mailbox:
    """All mails, oldest first. Concurrent calls of `add` share one write and one fsync."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "mails.log"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._index = _Index()
        self._end = self._recover()
        # One thread, so that writes and `clear` stay in order.
        self._writer = ThreadPoolExecutor(1, "mailbox")
        self._write = Batcher(self._write_all, name="mailcatcher.write", max_batch_size=512)

    def _recover(self) -> int:
        """Build the index and return the end of the file.

        A partly written mail at the end, which was never acknowledged, is truncated.
        """
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
        parent = os.open(self._path.parent, os.O_RDONLY)
        os.fsync(parent)
        os.close(parent)
        return end

    async def add(self, sender: str, recipients: Sequence[str], raw: bytes) -> str:
        """Return the id of the mail once it is on disk. Raises OSError if it cannot be written."""
        envelope = Envelope(str(new_id()), sender, list(recipients), datetime.now(UTC), len(raw), zlib.crc32(raw))
        await self._write((envelope, raw))
        return envelope.id

    async def _write_all(self, mails: list[tuple[Envelope, bytes]]) -> list[None]:
        await asyncio.get_running_loop().run_in_executor(self._writer, self._append, mails)
        return [None] * len(mails)

    def _append(self, mails: list[tuple[Envelope, bytes]]) -> None:
        added, parts, end = [], [], self._end
        for envelope, raw in mails:
            line = msgspec.json.encode(envelope) + b"\n"
            added.append((envelope, end))
            parts += [line, raw, b"\n"]
            end += len(line) + len(raw) + 1
        data = memoryview(b"".join(parts))
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fdatasync(self._file)
        except OSError:
            # A partial mail would corrupt the next one.
            os.ftruncate(self._file, self._end)
            raise
        self._end = end
        for envelope, offset in added:
            self._index.add(envelope, offset)

    async def clear(self) -> None:
        """Delete all mails."""

        def empty() -> None:
            os.ftruncate(self._file, 0)
            os.fsync(self._file)
            self._index, self._end = _Index(), 0

        await asyncio.get_running_loop().run_in_executor(self._writer, empty)

    def page(self, to: str | None, limit: int, offset: int) -> tuple[list[dict[str, Any]], int]:
        """Return (mails, total): one page of the mails to the address `to` (None: all mails), newest first.

        A mail has id, from, to, subject, message_id, date, headers, text and html.
        """
        offsets: Sequence[int] = self._index.by_recipient(to) if to else self._index.offsets
        total = len(offsets)
        page = offsets[max(0, total - offset - limit) : max(0, total - offset)]
        return [_summary(*found) for at in reversed(page) if (found := self._read(at))], total

    def raw(self, mail_id: str) -> bytes | None:
        """Return the mail as it was received, or None if there is no mail with this id."""
        for offset in self._index.by_id(mail_id):
            found = self._read(offset)
            if found and found[0].id == mail_id:
                return found[1]
        return None

    def _read(self, offset: int) -> tuple[Envelope, bytes] | None:
        """Return (envelope, raw mail) at the offset, or None if the file was cleared in the meantime."""
        size = 4096
        while (length := (data := os.pread(self._file, size, offset)).find(b"\n")) < 0:
            if len(data) < size:
                return None
            # An envelope with many recipients.
            size *= 4
        try:
            envelope = msgspec.json.decode(data[:length], type=Envelope)
        except msgspec.DecodeError:
            # Cleared, and written again.
            return None
        return envelope, os.pread(self._file, envelope.size, offset + length + 1)


def _summary(envelope: Envelope, raw: bytes) -> dict[str, Any]:
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
