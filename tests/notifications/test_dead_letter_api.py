"""The REST API for dead letters: what it lists, and that a mail is sent once however often it is replayed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from market.notifications.app import Clients
from market.notifications.dead_letters import writer
from market.notifications.domain import Mail
from tests.notifications.conftest import Mailing, event, json_lines
from tests.support import servers
from tests.support.ports import free_port
from tests.support.schemathesis import check_with_schemathesis
from tests.support.servers import KafkaHandle, running
from tests.support.waiting import until

FILE = Path(__file__).parents[2] / "openapi" / "notifications.json"


class Gate:
    """A mail server that accepts mails once the gate is open, and counts them."""

    available = True

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.waiting = 0
        self.mails: list[Mail] = []

    async def send(self, mail: Mail) -> None:
        self.waiting += 1
        await self.open.wait()
        self.mails.append(mail)

    async def wait_until_available(self) -> None:
        pass

    async def close(self) -> None:
        pass


@asynccontextmanager
async def serving(mailing: Mailing, mail_server: Any = None, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Run the service in this process, and yield a client of its API. Its limits of time are for a busy machine."""
    port = free_port()
    patient = {"admission": {"max_wait_seconds": 120}, "dead_letters": {"read_seconds": 60, "mail_seconds": 120}}
    changes = {name: {**patient.get(name, {}), **changes.get(name, {})} for name in patient | changes}
    clients = None if mail_server is None else Clients(mail_server=mail_server)
    async with mailing.running(clients=clients, http={"port": port}, **changes):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            yield client


async def listed(client: httpx.AsyncClient, **parameters: Any) -> list[dict[str, Any]]:
    response = await client.get("/api/dead-letters", params=parameters)
    assert response.status_code == 200, response.text
    return list(response.json()["items"])


async def wait_for_letters(client: httpx.AsyncClient, number: int) -> list[dict[str, Any]]:
    """Return the listed dead letters once there are at least `number` of them."""

    async def enough() -> list[dict[str, Any]]:
        response = await client.get("/api/dead-letters")
        # 503: Kafka has not responded in time.
        found = list(response.json()["items"]) if response.status_code == 200 else []
        return found if len(found) >= number else []

    return await until(enough, what=f"{number} dead letters")


async def replay(client: httpx.AsyncClient, letter_id: str) -> dict[str, Any]:
    response = await client.post(f"/api/dead-letters/{letter_id}/replay")
    assert response.status_code == 200, response.text
    return dict(response.json())


async def rejected(mailing: Mailing, *events_: dict[str, Any]) -> None:
    """Let the mail server reject the test's mails, and publish the events."""
    await mailing.inject_faults({"mode": "550", "stage": "rcpt", "to": mailing.mailbox})
    mailing.publish(*events_)


async def test_a_rejected_mail_is_listed_with_its_reason_and_a_replay_sends_it_once(mailing: Mailing) -> None:
    order_id = uuid4()
    async with serving(mailing) as client:
        await rejected(mailing, event(order_id, email=mailing.mailbox))
        [letter] = await wait_for_letters(client, 1)
        masked = f"{mailing.mailbox[0]}***@example.test"
        assert {name: letter[name] for name in letter if name not in ("id", "time", "detail")} == {
            "reason": "rejected",
            "order_id": str(order_id),
            "event": "created",
            "attempts": 1,
            "recipient": masked,
            "status": "open",
            "done_at": None,
        }
        assert letter["detail"].startswith("550 ")
        assert mailing.mailbox not in str(letter)

        again = await replay(client, letter["id"])
        assert (again["result"], again["reason"]) == ("open", "rejected")
        assert again["detail"].startswith("550 ")
        assert mailing.mailbox not in str(again)
        assert [x["status"] for x in await listed(client)] == ["open"]

        await mailing.inject_faults()
        assert (await replay(client, letter["id"]))["result"] == "mailed"
        assert (await replay(client, letter["id"]))["result"] == "already-replayed"
        [done] = await listed(client)
        assert (done["status"], done["done_at"] is None) == ("replayed", False)
        assert await listed(client, status="open") == []
    assert len(await mailing.mails()) == 1
    # The command sees the same.
    assert json_lines((await mailing.dead_letters_command("list", "--json"))[1]) == []
    _, output = await mailing.dead_letters_command("replay", letter["id"], "--json")
    assert json_lines(output) == [{"id": letter["id"], "result": "already replayed"}]


async def test_of_two_replays_at_the_same_time_in_two_processes_one_sends_the_mail(mailing: Mailing) -> None:
    gates = Gate(), Gate()
    async with serving(mailing) as client:
        await rejected(mailing, event(email=mailing.mailbox))
        [letter] = await wait_for_letters(client, 1)
    async with serving(mailing, gates[0]) as first, serving(mailing, gates[1]) as second:
        replaying = asyncio.create_task(replay(first, letter["id"]))
        await until(lambda: gates[0].waiting == 1)
        for action in ("replay", "drop"):
            refused = await second.post(f"/api/dead-letters/{letter['id']}/{action}")
            assert (refused.status_code, refused.json()["type"]) == (409, "urn:market:problem:attempt-in-progress")
        status, output = await mailing.dead_letters_command("replay", letter["id"], "--json")
        assert status == 1
        assert json_lines(output)[0]["reason"].startswith("claimed: ")
        gates[0].open.set()
        assert (await replaying)["result"] == "mailed"
        assert (await replay(second, letter["id"]))["result"] == "already-replayed"
    assert (len(gates[0].mails), gates[1].waiting) == (1, 0)
    assert await mailing.mails() == []


async def test_replays_that_race_without_a_winner_arranged_send_one_mail(mailing: Mailing) -> None:
    async with serving(mailing) as first, serving(mailing) as second:
        await rejected(mailing, event(email=mailing.mailbox))
        [letter] = await wait_for_letters(first, 1)
        await mailing.inject_faults()
        path = f"/api/dead-letters/{letter['id']}/replay"
        responses = await asyncio.gather(*(client.post(path) for client in (first, second) * 3))
        outcomes = [r.json()["result"] if r.status_code == 200 else r.status_code for r in responses]
        assert outcomes.count("mailed") == 1
        assert set(outcomes) <= {"mailed", "already-replayed", 409}
        assert (await replay(second, letter["id"]))["result"] == "already-replayed"
    assert len(await mailing.mails()) == 1


async def test_an_event_that_was_mailed_meanwhile_is_not_mailed_again(mailing: Mailing) -> None:
    published = event(email=mailing.mailbox)
    async with serving(mailing) as client:
        await rejected(mailing, published)
        [letter] = await wait_for_letters(client, 1)
        await mailing.inject_faults()
        mailing.publish(published)
        await mailing.wait_for_mails(1)
    # Another process, which knows of the mail from the sent log only.
    async with serving(mailing) as client:
        assert (await replay(client, letter["id"]))["result"] == "mailed-before"
        assert await listed(client, status="open") == []
    assert len(await mailing.mails()) == 1


async def test_a_dead_letter_is_dropped_without_a_mail(mailing: Mailing) -> None:
    async with serving(mailing) as client:
        await rejected(mailing, event(email=mailing.mailbox))
        [letter] = await wait_for_letters(client, 1)
        await mailing.inject_faults()
        for expected in ("dropped", "already-dropped"):
            response = await client.post(f"/api/dead-letters/{letter['id']}/drop")
            assert (response.status_code, response.json()["result"]) == (200, expected)
        assert (await replay(client, letter["id"]))["result"] == "already-dropped"
    assert await mailing.mails() == []


async def test_dead_letters_are_listed_newest_first_in_pages(mailing: Mailing) -> None:
    published = [event() for _ in range(5)]
    async with serving(mailing) as client:
        for one in published:
            mailing.publish_raw(one["subject"].encode(), b"no event")
            mailing.producer.flush(60)
            await wait_for_letters(client, published.index(one) + 1)
        found, after = [], None
        for expected in (2, 2, 1):
            page = (
                await client.get("/api/dead-letters", params={"limit": 2, **({"after": after} if after else {})})
            ).json()
            assert (len(page["items"]), page["complete"]) == (expected, True)
            found += page["items"]
            after = page["next"]
        assert after is None
    assert [letter["order_id"] for letter in found] == [one["subject"] for one in reversed(published)]
    assert {(letter["reason"], letter["event"], letter["attempts"]) for letter in found} == {("invalid-event", None, 0)}


async def test_only_so_many_records_are_read_and_the_page_says_so(mailing: Mailing) -> None:
    for n in range(110):
        mailing.producer.produce(mailing.dead_letter_topic, key=b"k", value=b"{}", partition=n % 2)
    assert mailing.producer.flush(60) == 0
    async with serving(mailing, dead_letters={"max_records": 100}) as client:
        page = (await client.get("/api/dead-letters", params={"limit": 1000})).json()
    assert (len(page["items"]), page["complete"]) == (100, False)
    assert {letter["id"] for letter in page["items"]} == {f"{p}-{offset}" for p in (0, 1) for offset in range(5, 55)}


async def test_a_record_with_foreign_headers_is_listed_and_stays_open(mailing: Mailing) -> None:
    headers = [
        (writer.REASON, b"\xff\xfe"),
        (writer.ATTEMPTS, b"many"),
        (writer.TIME, None),
        (writer.OMITTED, b"1"),
        (writer.PARTITION, b"-7"),
        ("other", b"\x00"),
    ]
    mailing.producer.produce(mailing.dead_letter_topic, key=b"\xff", value=None, headers=headers, partition=1)
    # A mark and a claim without the dead letter they refer to.
    for name in (writer.MARK_OF, writer.CLAIM_OF):
        mailing.producer.produce(mailing.dead_letter_topic, key=None, value=None, headers=[(name, b"0-9")], partition=0)
    assert mailing.producer.flush(60) == 0
    async with serving(mailing) as client:
        [letter] = await listed(client)
        assert letter | {"reason": ""} == {
            "id": "1-0",
            "time": "",
            "reason": "",
            "detail": "",
            "order_id": None,
            "event": None,
            "attempts": None,
            "recipient": None,
            "status": "open",
            "done_at": None,
        }
        outcome = await replay(client, "1-0")
        assert (outcome["result"], outcome["reason"]) == ("open", "unreadable")


async def test_an_unknown_dead_letter_is_not_found(mailing: Mailing) -> None:
    async with serving(mailing) as client:
        for letter_id in ("0-99", "99-0", "0", "0-", "a-b", "00-1", "0-1-2", "0-99999999999999999999"):
            for action in ("replay", "drop"):
                response = await client.post(f"/api/dead-letters/{letter_id}/{action}")
                assert response.status_code == 404, (letter_id, response.text)


async def test_requests_that_wait_too_long_get_503_while_one_is_served(mailing: Mailing) -> None:
    async with serving(mailing) as client:
        await rejected(mailing, event(email=mailing.mailbox))
        [letter] = await wait_for_letters(client, 1)
    gate = Gate()
    async with serving(mailing, gate, admission={"max_wait_seconds": 0.1}) as client:
        replaying = asyncio.create_task(replay(client, letter["id"]))
        await until(lambda: gate.waiting == 1)
        refused = await client.get("/api/dead-letters")
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:market:problem:overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        gate.open.set()
        assert (await replaying)["result"] == "mailed"
        assert (await client.get("/api/dead-letters")).status_code == 200


async def test_without_kafka_requests_get_503_with_retry_after_and_nothing_is_sent(
    mail: Any, catcher: httpx.AsyncClient, tmp_path: Path
) -> None:
    kafka = KafkaHandle(servers.kafka_server(tmp_path / "kafka", tmp_path / "logs"))
    with running(kafka):
        mailing = Mailing(kafka.bootstrap_servers, mail.smtp_port, catcher, tmp_path, kafka.kind, 6)
        mailing.create_topic()
        mailing.create_topic(mailing.dead_letter_topic)
        async with serving(mailing, dead_letters={"read_seconds": 2}) as client:
            await rejected(mailing, event(email=mailing.mailbox))
            [letter] = await wait_for_letters(client, 1)
            await mailing.inject_faults()
            kafka.pause()
            try:
                for method, path in (
                    ("GET", "/api/dead-letters"),
                    ("POST", f"/api/dead-letters/{letter['id']}/replay"),
                ):
                    refused = await client.request(method, path)
                    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5"), refused.text
            finally:
                kafka.resume()
            assert await mailing.mails() == []

            async def settled() -> str:
                response = await client.post(f"/api/dead-letters/{letter['id']}/replay")
                return str(response.json()["result"]) if response.status_code == 200 else ""

            assert await until(settled, what="Kafka is available again") == "mailed"
        assert len(await mailing.mails()) == 1


async def test_a_replay_is_finished_when_a_process_that_waits_for_its_topic_is_stopped(mailing: Mailing) -> None:
    if mailing.broker == "embedded":
        pytest.skip("the embedded broker creates topics on first use, so no process waits for one")
    async with serving(mailing) as client:
        await rejected(mailing, event(email=mailing.mailbox))
        [letter] = await wait_for_letters(client, 1)
    # The mail server takes the mail, but replies later; it does so long before the grace period ends.
    await mailing.inject_faults({"mode": "hang", "stage": "accepted", "to": mailing.mailbox, "seconds": 3})
    process = mailing.start_process(kafka={"topic": f"{mailing.topic}-missing"})
    await until(lambda: f"topic {mailing.topic}-missing" in process.log)
    address = f"http://127.0.0.1:{process.config['http']['port']}"
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        replaying = asyncio.create_task(replay(client, letter["id"]))
        await mailing.wait_for_mails(1)
        process.terminate()
        assert (await replaying)["result"] == "mailed"
    assert await process.exited() == 0
    async with serving(mailing) as client:
        assert [x["status"] for x in await listed(client)] == ["replayed"]
    assert len(await mailing.mails()) == 1


async def test_schemathesis_finds_no_500_and_no_undocumented_response(mailing: Mailing, tmp_path: Path) -> None:
    mailing.producer.produce(mailing.dead_letter_topic, key=b"k", value=b"{}", partition=0)
    assert mailing.producer.flush(60) == 0
    process = mailing.start_process()
    await process.ready()
    await check_with_schemathesis(FILE, f"http://127.0.0.1:{process.config['http']['port']}", tmp_path)
