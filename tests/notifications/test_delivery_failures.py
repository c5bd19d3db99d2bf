"""Mails that the mail server does not accept, messages that are not events, and outages of the mail server."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from aiosmtpd.smtp import SMTP
from market_dev.mailcatcher.mailbox import Mailbox
from market_dev.mailcatcher.smtp import Authenticator, Handler

from market.notifications import metrics
from market.notifications.app import Clients
from market.notifications.domain import Mail
from tests.notifications.conftest import Mailing, event, is_paused, message_ids
from tests.support.certificates import make_authority, make_certificate
from tests.support.ports import free_port
from tests.support.waiting import until


async def test_a_deferred_mail_is_retried_and_delays_no_other_order(mailing: Mailing) -> None:
    full = f"full-{mailing.mailbox}"
    retries = metrics.RETRIES.labels("deferred")._value.get
    await mailing.inject_faults({"mode": "452", "stage": "rcpt", "to": full})
    async with mailing.running():
        before = retries()
        mailing.publish(event(email=full), *(event(email=mailing.mailbox) for _ in range(5)))
        await mailing.wait_for_mails(5)
        await until(lambda: retries() >= before + 4)
        assert await mailing.mails(full) == []
        await mailing.inject_faults({"mode": "451", "stage": "data", "to": full})
        before = retries()
        await until(lambda: retries() >= before + 2)
        await mailing.inject_faults()
        assert len(await mailing.wait_for_mails(1, full)) == 1
        await mailing.wait_committed(6)
    assert mailing.dead_letters() == []


@pytest.mark.parametrize("stage", ["mail", "rcpt", "data"])
async def test_a_mail_rejected_at_any_stage_becomes_a_dead_letter(mailing: Mailing, stage: str) -> None:
    rejected = event(email=mailing.mailbox)
    await mailing.inject_faults({"mode": "550 5.1.1 no such user", "stage": stage, "times": 1})
    async with mailing.running():
        mailing.publish(rejected, headers={"x-request-id": "req-7"}, partition=2)
        [letter] = await mailing.wait_for_dead_letters(1)
        await mailing.wait_committed(1)
    headers = letter["headers"]
    assert letter["key"] == rejected["subject"].encode()
    assert msgspec.json.decode(letter["value"]) == rejected
    assert headers["dead-letter-reason"] == "rejected: 550 5.1.1 no such user"
    assert headers["dead-letter-time"].endswith("+00:00")
    assert [headers[f"dead-letter-{n}"] for n in ("topic", "partition", "offset")] == [mailing.topic, "2", "0"]
    assert headers["x-request-id"] == "req-7"
    assert await mailing.mails() == []


async def test_a_mail_deferred_for_too_long_becomes_a_dead_letter(mailing: Mailing) -> None:
    await mailing.inject_faults({"mode": "452 4.2.2 mailbox full", "stage": "rcpt", "to": mailing.mailbox})
    started = time.monotonic()
    async with mailing.running(retry={"give_up_seconds": 1.0}):
        mailing.publish(event(email=mailing.mailbox))
        [letter] = await mailing.wait_for_dead_letters(1)
        assert time.monotonic() - started > 1
    assert letter["headers"]["dead-letter-reason"] == "retries-exhausted: 452 4.2.2 mailbox full"


class FailingMailServer:
    """Raises an error that nobody expects."""

    available = True

    def __init__(self) -> None:
        self.recipients: list[str] = []

    async def send(self, mail: Mail) -> None:
        self.recipients.append(mail.recipient)
        raise RuntimeError("broken")

    async def wait_until_available(self) -> None:
        """Return at once."""

    async def close(self) -> None:
        """There is no connection."""


async def test_an_internal_error_is_retried_and_then_becomes_a_dead_letter(mailing: Mailing) -> None:
    mail_server = FailingMailServer()
    async with mailing.running(clients=Clients(mail_server), retry={"give_up_seconds": 0.3}):
        mailing.publish(event(email=mailing.mailbox))
        [letter] = await mailing.wait_for_dead_letters(1)
        await mailing.wait_committed(1)
    assert letter["headers"]["dead-letter-reason"] == "retries-exhausted: RuntimeError: broken"
    assert len(mail_server.recipients) > 1
    assert set(mail_server.recipients) == {mailing.mailbox}
    assert await mailing.mails() == []


async def test_invalid_events_become_dead_letters_and_the_next_event_is_mailed(mailing: Mailing) -> None:
    good = event(email=mailing.mailbox)
    invalid = [
        b"",
        b"not json",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"specversion":"1.0","id":"x","type":"order.created"}',
        *(
            msgspec.json.encode(e)
            for e in (
                {**good, "id": "a>\r\nBcc: x@example.test"},
                {**good, "data": {**good["data"], "total": "NaN"}},
                {**good, "data": {**good["data"], "currency": "<b>"}},
                {**good, "data": {**good["data"], "id": "7"}},
                {**good, "data": {**good["data"], "created_at": "yesterday"}},
                {**good, "data": {**good["data"], "created_at": "0001-01-01T00:00:00+14:00"}},
            )
        ),
    ]
    async with mailing.running():
        for value in invalid:
            mailing.publish_raw(b"k", value, partition=0)
        mailing.publish_raw(None, None, partition=0)
        mailing.publish(good, partition=0)
        assert len(await mailing.wait_for_mails(1)) == 1
        letters = await mailing.wait_for_dead_letters(len(invalid) + 1)
        await mailing.wait_committed(len(invalid) + 2)
    assert sorted(letter["value"] or b"" for letter in letters) == sorted([*invalid, b""])
    assert {letter["headers"]["dead-letter-reason"].partition(":")[0] for letter in letters} == {"invalid-event"}


async def test_an_event_of_unknown_type_is_skipped_and_counted(mailing: Mailing) -> None:
    before = metrics.SKIPPED_EVENTS.labels("unknown-type")._value.get()
    async with mailing.running():
        mailing.publish({**event(), "type": "order.shipped"}, event(email=mailing.mailbox))
        await mailing.wait_for_mails(1)
        await mailing.wait_committed(2)
    assert metrics.SKIPPED_EVENTS.labels("unknown-type")._value.get() == before + 1
    assert mailing.dead_letters() == []


@asynccontextmanager
async def _mail_server(
    directory: Path, port: int, login: str | None = None, pem: Path | None = None
) -> AsyncIterator[Mailbox]:
    """Run a mail server in this process; its mailbox is kept in the directory."""
    mailbox = Mailbox(directory)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if pem else None
    if tls:
        tls.load_cert_chain(pem)
    sessions: list[SMTP] = []

    def session() -> SMTP:
        with warnings.catch_warnings():
            # It warns of logins without TLS.
            warnings.simplefilter("ignore")
            return new_session()

    def new_session() -> SMTP:
        sessions.append(
            SMTP(
                Handler(mailbox),
                hostname="mail.market.test",
                tls_context=tls,
                require_starttls=pem is not None,
                auth_required=bool(login),
                auth_require_tls=pem is not None,
                authenticator=Authenticator(login) if login else None,
            )
        )
        return sessions[-1]

    server = await asyncio.get_running_loop().create_server(session, "127.0.0.1", port, reuse_address=True)
    try:
        yield mailbox
    finally:
        server.close()
        for one in sessions:
            if one.transport is not None:
                one.transport.close()


async def test_a_wrong_password_pauses_consumption_and_loses_no_mail(mailing: Mailing, tmp_path: Path) -> None:
    port = free_port()
    async with _mail_server(tmp_path / "mail", port, "shop:right") as mailbox:
        wrong = {"port": port, "username": "shop", "password": "wrong"}
        async with mailing.running(smtp=wrong) as process:
            mailing.publish(*(event(email=mailing.mailbox) for _ in range(3)))
            await until(is_paused)
            await asyncio.sleep(1)
            # The service is ready and keeps its partitions, and nothing is settled.
            assert process.health.unready_reasons() == {}
            assert sum(mailing.committed_offsets().values()) == 0
        async with mailing.running(smtp={**wrong, "password": "right"}):
            await mailing.wait_committed(3)
        assert mailbox.page(None, 1, 0)[1] == 3
    assert mailing.dead_letters() == []


async def test_an_outage_of_the_mail_server_does_not_count_as_retry_time_of_mails(
    mailing: Mailing, tmp_path: Path
) -> None:
    port = free_port()
    async with mailing.running(smtp={"port": port}, retry={"give_up_seconds": 0.2}):
        mailing.publish(*(event(email=mailing.mailbox) for _ in range(20)))
        await until(is_paused)
        # Longer than a mail may be deferred.
        await asyncio.sleep(1)
        assert is_paused()
        async with _mail_server(tmp_path / "mail", port) as mailbox:
            await mailing.wait_committed(20)
            assert mailbox.page(None, 1, 0)[1] == 20
        assert not is_paused()
        mailing.publish(event(email=mailing.mailbox))
        await until(is_paused)
        await asyncio.sleep(0.5)
        async with _mail_server(tmp_path / "mail", port) as mailbox:
            await mailing.wait_committed(21)
            assert mailbox.page(None, 1, 0)[1] == 21
    assert mailing.dead_letters() == []


async def test_mails_are_sent_with_starttls_and_authentication(mailing: Mailing, tmp_path: Path) -> None:
    pem, certificate, port = tmp_path / "both.pem", tmp_path / "cert.pem", free_port()
    key = tmp_path / "key.pem"
    await asyncio.to_thread(
        subprocess.run,
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    pem.write_text(certificate.read_text() + key.read_text())
    settings = {"host": "localhost", "port": port, "tls": "starttls", "username": "shop", "password": "right"}
    async with _mail_server(tmp_path / "mail", port, "shop:right", pem) as mailbox:
        async with mailing.running(smtp=settings):
            mailing.publish(event(email=mailing.mailbox))
            # The certificate is not trusted.
            await until(is_paused)
        async with mailing.running(smtp={**settings, "ca_file": str(certificate)}):
            await mailing.wait_committed(1)
        assert mailbox.page(None, 1, 0)[1] == 1


async def test_a_changed_authority_is_read_again_without_a_restart(mailing: Mailing, tmp_path: Path) -> None:
    port, trusted = free_port(), tmp_path / "trusted.pem"
    pems = []
    for name in ("old", "new"):
        authority = await asyncio.to_thread(make_authority, tmp_path, name)
        certificate, key = await asyncio.to_thread(make_certificate, authority, "localhost")
        pems.append((tmp_path / f"{name}-server.pem", authority))
        pems[-1][0].write_bytes(certificate.read_bytes() + key.read_bytes())
    (old_server, old), (new_server, new) = pems
    trusted.write_bytes(old.read_bytes())
    settings = {"host": "localhost", "port": port, "tls": "starttls", "username": "shop", "password": "right"}
    async with mailing.running(smtp={**settings, "ca_file": str(trusted)}):
        async with _mail_server(tmp_path / "mail", port, "shop:right", old_server):
            mailing.publish(event(email=mailing.mailbox))
            await mailing.wait_committed(1)
        async with _mail_server(tmp_path / "mail", port, "shop:right", new_server) as mailbox:
            mailing.publish(event(email=mailing.mailbox))
            await until(is_paused)
            trusted.write_bytes(new.read_bytes())
            await mailing.wait_committed(2)
            assert mailbox.page(None, 1, 0)[1] == 2


async def test_a_mail_is_sent_again_if_the_server_hangs_or_closes_the_connection(mailing: Mailing) -> None:
    await mailing.inject_faults(
        {"mode": "hang", "stage": "data", "times": 1, "seconds": 5}, {"mode": "drop", "stage": "rcpt", "times": 2}
    )
    mine = [event(email=mailing.mailbox) for _ in range(6)]
    async with mailing.running(smtp={"timeout_seconds": 1}):
        mailing.publish(*mine)
        await mailing.wait_committed(6)
    assert sorted({m["message_id"] for m in await mailing.mails()}) == message_ids(mine)
    assert mailing.dead_letters() == []


async def test_an_international_domain_is_mailed_in_its_ascii_form(mailing: Mailing) -> None:
    name = f"ann-{mailing.topic}"
    async with mailing.running():
        mailing.publish(event(user=f"{name}@b\u00fccher.example"))
        [mail] = await mailing.wait_for_mails(1, f"{name}@xn--bcher-kva.example")
        await mailing.wait_committed(1)
    assert mail["headers"]["To"] == f"{name}@xn--bcher-kva.example"
    assert mailing.dead_letters() == []


async def test_an_international_local_part_is_mailed_if_the_mail_server_offers_smtputf8(
    mailing: Mailing, tmp_path: Path
) -> None:
    address = f"j\u00fcrgen-{mailing.topic}@b\u00fccher.example"
    sent_to = address.replace("b\u00fccher", "xn--bcher-kva")
    async with mailing.running():
        mailing.publish(event(email=address))
        [mail] = await mailing.wait_for_mails(1, sent_to)
        await mailing.wait_committed(1)
    assert mail["headers"]["To"] == sent_to
    port = free_port()
    async with _mail_server(tmp_path / "mail", port) as mailbox:
        async with mailing.running(smtp={"port": port}):
            mailing.publish(event(email=address), event(email=mailing.mailbox))
            [letter] = await mailing.wait_for_dead_letters(1)
            await mailing.wait_committed(3)
        assert mailbox.page(None, 1, 0)[1] == 1
    reason = "rejected: the address needs SMTPUTF8, which the mail server does not offer"
    assert letter["headers"]["dead-letter-reason"] == reason


async def test_an_address_that_cannot_be_mailed_is_skipped_and_counted(mailing: Mailing) -> None:
    before = metrics.SKIPPED_EVENTS.labels("invalid-recipient")._value.get()
    async with mailing.running():
        mailing.publish(event(user="ann@home"), event(user="ann"), event(email=mailing.mailbox))
        await mailing.wait_for_mails(1)
        await mailing.wait_committed(3)
    assert metrics.SKIPPED_EVENTS.labels("invalid-recipient")._value.get() == before + 1
    assert mailing.dead_letters() == []
