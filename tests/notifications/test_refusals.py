"""What becomes of a mail that the mail server does not take, and of a message that is no event."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from aiosmtpd.smtp import SMTP
from market_dev.mailcatcher.mailbox import Mailbox
from market_dev.mailcatcher.smtp import Authenticator, Handler

from market.contracts import events
from market.notifications import metrics
from tests.notifications.conftest import Post, event, lines
from tests.support.ports import free_port
from tests.support.waiting import until


async def _letters(post: Post, number: int) -> list[dict[str, Any]]:
    """The dead letters, once there are `number` and the offsets behind them are committed."""

    async def enough() -> list[dict[str, Any]]:
        found = await asyncio.to_thread(post.dead_letters)
        return found if len(found) >= number else []

    return await until(enough)


async def _paused() -> bool:
    return bool(metrics.PAUSED.labels("mail-server")._value.get() == 1)


async def test_a_refusal_for_now_is_tried_again_and_holds_up_no_other_order(post: Post) -> None:
    full = f"full-{post.mailbox}"
    refused = metrics.RETRIES.labels("refused")._value.get

    async def again(times: float) -> bool:
        return bool(refused() >= times)

    await post.misbehave({"mode": "452", "stage": "rcpt", "to": full})
    async with post.reading():
        before = refused()
        post.publish(event(email=full), *(event(email=post.mailbox) for _ in range(5)))
        await post.count(5)
        await until(lambda: again(before + 4))
        assert await post.mails(full) == []
        await post.misbehave({"mode": "451", "stage": "data", "to": full})
        before = refused()
        await until(lambda: again(before + 2))
        await post.misbehave()
        assert len(await post.count(1, full)) == 1
        await post.all_committed(6)
    assert post.dead_letters() == []


@pytest.mark.parametrize("stage", ["mail", "rcpt", "data"])
async def test_a_refusal_for_good_becomes_a_dead_letter_at_any_stage(post: Post, stage: str) -> None:
    refused = event(email=post.mailbox)
    await post.misbehave({"mode": "550 5.1.1 no such user", "stage": stage, "times": 1})
    async with post.reading():
        post.publish(refused, headers={"x-request-id": "req-7"}, partition=2)
        [letter] = await _letters(post, 1)
        await post.all_committed(1)
    headers = letter["headers"]
    assert letter["key"] == refused["subject"].encode()
    assert msgspec.json.decode(letter["value"]) == refused
    assert headers["dead-letter-reason"] == "refused: 550 5.1.1 no such user"
    assert headers["dead-letter-time"].endswith("+00:00")
    assert [headers[f"dead-letter-{n}"] for n in ("topic", "partition", "offset")] == [post.topic, "2", "0"]
    assert headers["x-request-id"] == "req-7"
    assert await post.mails() == []


async def test_a_mailbox_that_stays_full_becomes_a_dead_letter_in_time(post: Post) -> None:
    await post.misbehave({"mode": "452 4.2.2 mailbox full", "stage": "rcpt", "to": post.mailbox})
    started = time.monotonic()
    async with post.reading(retry={"give_up_seconds": 1.0}):
        post.publish(event(email=post.mailbox))
        [letter] = await _letters(post, 1)
        assert time.monotonic() - started > 1
    assert letter["headers"]["dead-letter-reason"] == "gave-up: 452 4.2.2 mailbox full"


async def test_poison_becomes_dead_letters_and_what_follows_is_mailed(post: Post) -> None:
    good = event(email=post.mailbox)
    broken = [
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
            )
        ),
    ]
    async with post.reading():
        for value in broken:
            post.publish_raw(b"k", value, partition=0)
        post.publish_raw(None, None, partition=0)
        post.publish(good, partition=0)
        assert len(await post.count(1)) == 1
        letters = await _letters(post, len(broken) + 1)
        await post.all_committed(len(broken) + 2)
    assert sorted(letter["value"] or b"" for letter in letters) == sorted([*broken, b""])
    assert {letter["headers"]["dead-letter-reason"].partition(":")[0] for letter in letters} == {"unreadable"}


async def test_an_event_of_a_type_that_comes_later_is_passed_over_and_counted(post: Post) -> None:
    before = metrics.SKIPPED.labels("unknown-type")._value.get()
    async with post.reading():
        post.publish({**event(), "type": "order.shipped"}, event(email=post.mailbox))
        await post.count(1)
        await post.all_committed(2)
    assert metrics.SKIPPED.labels("unknown-type")._value.get() == before + 1
    assert post.dead_letters() == []


async def test_a_letter_that_no_topic_takes_whole_is_put_aside_without_its_value(post: Post) -> None:
    huge = b"x" * (events.MAX_MESSAGE_BYTES - 200)
    async with post.reading():
        post.publish_raw(b"k" * 8, huge)
        [letter] = await _letters(post, 1)
        # Apache Kafka refuses what is above the topic's limit; the embedded broker has none.
        assert letter["value"] in (None, huge)
        id = lines((await post.command("list", "--json"))[1])[0]["id"]
        _, output = await post.command("show", id, "--json")
    assert lines(output)[0]["value"] == huge.decode()


@asynccontextmanager
async def _another_sink(
    directory: Path, port: int, login: str | None = None, pem: Path | None = None
) -> AsyncIterator[Mailbox]:
    """A mail server of this process, which comes and goes; its mailbox stays."""
    mailbox = Mailbox(directory)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if pem else None
    if tls:
        tls.load_cert_chain(pem)
    made: list[SMTP] = []

    def session() -> SMTP:
        with warnings.catch_warnings():
            # A login without TLS: it is this machine's own.
            warnings.simplefilter("ignore")
            return new_session()

    def new_session() -> SMTP:
        made.append(
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
        return made[-1]

    server = await asyncio.get_running_loop().create_server(session, "127.0.0.1", port, reuse_address=True)
    try:
        yield mailbox
    finally:
        server.close()
        for one in made:
            if one.transport is not None:
                one.transport.close()


async def test_a_wrong_password_pauses_reading_and_loses_nothing(post: Post, tmp_path: Path) -> None:
    port = free_port()
    async with _another_sink(tmp_path / "mail", port, "shop:right") as sink:
        wrong = {"port": port, "username": "shop", "password": "wrong"}
        async with post.reading(smtp=wrong) as process:
            post.publish(*(event(email=post.mailbox) for _ in range(3)))
            await until(_paused)
            await asyncio.sleep(1)
            # It is alive and holds its partitions, and nothing is done.
            assert await process.health.not_ready() == {}
            assert sum(post.committed().values()) == 0
        async with post.reading(smtp={**wrong, "password": "right"}):
            await post.all_committed(3)
        assert sink.page(None, 1, 0)[1] == 3
    assert post.dead_letters() == []


async def test_a_mail_server_that_is_away_is_waited_for_and_not_counted_against_the_mails(
    post: Post, tmp_path: Path
) -> None:
    port = free_port()
    async with post.reading(smtp={"port": port}, retry={"give_up_seconds": 0.2}):
        post.publish(*(event(email=post.mailbox) for _ in range(20)))
        await until(_paused)
        # Longer than a mail may be refused, if this counted as that.
        await asyncio.sleep(1)
        assert await _paused()
        async with _another_sink(tmp_path / "mail", port) as sink:
            await post.all_committed(20)
            assert sink.page(None, 1, 0)[1] == 20
        assert not await _paused()
        post.publish(event(email=post.mailbox))
        await until(_paused)
        await asyncio.sleep(0.5)
        async with _another_sink(tmp_path / "mail", port) as sink:
            await post.all_committed(21)
            assert sink.page(None, 1, 0)[1] == 21
    assert post.dead_letters() == []


async def test_a_mail_goes_out_encrypted_and_logged_in(post: Post, tmp_path: Path) -> None:
    pem, certificate, port = tmp_path / "both.pem", tmp_path / "cert.pem", free_port()
    key = tmp_path / "key.pem"
    await asyncio.to_thread(
        subprocess.run,
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-days",
            "2",
            "-keyout",
            key,
            "-out",
            certificate,
        ],
        check=True,
        capture_output=True,
    )
    pem.write_text(certificate.read_text() + key.read_text())
    settings = {"host": "localhost", "port": port, "tls": "starttls", "username": "shop", "password": "right"}
    async with _another_sink(tmp_path / "mail", port, "shop:right", pem) as sink:
        async with post.reading(smtp=settings):
            post.publish(event(email=post.mailbox))
            # Nobody vouches for that certificate.
            await until(_paused)
        async with post.reading(smtp={**settings, "ca_file": str(certificate)}):
            await post.all_committed(1)
        assert sink.page(None, 1, 0)[1] == 1


async def test_a_mail_server_that_hangs_or_breaks_off_is_asked_again(post: Post) -> None:
    await post.misbehave(
        {"mode": "hang", "stage": "data", "times": 1, "seconds": 5}, {"mode": "drop", "stage": "rcpt", "times": 2}
    )
    mine = [event(email=post.mailbox) for _ in range(6)]
    async with post.reading(smtp={"timeout_seconds": 1}):
        post.publish(*mine)
        await post.all_committed(6)
    assert {m["message_id"] for m in await post.mails()} == {f"<{e['id']}@market.test>" for e in mine}
    assert post.dead_letters() == []


async def test_dead_letters_are_listed_shown_replayed_and_dropped(post: Post) -> None:
    await post.misbehave({"mode": "550", "stage": "rcpt", "to": post.mailbox})
    mine = [event(uuid4(), email=post.mailbox) for _ in range(3)]
    async with post.reading():
        post.publish(*mine)
        await _letters(post, 3)
    status, output = await post.command("list", "--json")
    assert status == 0
    listed = {x["key"]: x for x in lines(output)}
    assert set(listed) == {e["subject"] for e in mine}
    assert {x["status"] for x in listed.values()} == {"open"}
    first, second, third = (listed[e["subject"]]["id"] for e in mine)

    status, output = await post.command("show", first, "--json")
    assert msgspec.json.decode(lines(output)[0]["value"]) == mine[0]

    # Still refused: it stays open.
    status, output = await post.command("replay", first, "--json")
    assert (status, lines(output)[0]["result"]) == (1, "open")
    await post.misbehave()
    status, output = await post.command("replay", first, second, "--json")
    assert (status, [x["result"] for x in lines(output)]) == (0, ["replayed", "replayed"])
    assert [m["message_id"] for m in await post.mails()] == [f"<{e['id']}@market.test>" for e in mine[:2]]
    status, output = await post.command("drop", "--all", "--json")
    assert (status, lines(output)) == (0, [{"id": third, "result": "dropped"}])

    assert lines((await post.command("list", "--json"))[1]) == []
    _, output = await post.command("list", "--all", "--json")
    assert {x["id"]: x["status"] for x in lines(output)} == {first: "replayed", second: "replayed", third: "dropped"}
    status, output = await post.command("replay", first, "--json")
    assert (status, lines(output)[0]["result"]) == (0, "already replayed")
    assert len(await post.mails()) == 2
    assert (await post.command("show", "0-99"))[0] == 2
    assert (await post.command("drop"))[0] == 2
    assert "0 dead letters" in (await post.command("list"))[1]
