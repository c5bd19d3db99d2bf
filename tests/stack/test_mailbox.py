"""The mailbox finds mails by page, by address and by id, also after a restart."""

from pathlib import Path

from market_dev.mailcatcher.mailbox import Mailbox


async def _filled(directory: Path, count: int) -> tuple[Mailbox, list[str]]:
    mailbox = Mailbox(directory)
    ids = []
    for number in range(count):
        recipients = [
            f"user{number % 5}@example.test",
            *([f"many{n}@example.test" for n in range(500)] if number == 7 else []),
        ]
        ids.append(
            await mailbox.add("shop@example.test", recipients, f"Subject: mail {number}\r\n\r\nHello\r\n".encode())
        )
    return mailbox, ids


async def test_pages_have_the_newest_mail_first_also_after_a_restart(tmp_path: Path) -> None:
    mailbox, _ = await _filled(tmp_path, 23)
    for same in (mailbox, Mailbox(tmp_path)):
        items, total = same.page(None, 3, 1)
        assert ([i["subject"] for i in items], total) == (["mail 21", "mail 20", "mail 19"], 23)


async def test_addresses_are_case_insensitive_and_found_among_many_recipients(tmp_path: Path) -> None:
    mailbox, _ = await _filled(tmp_path, 23)
    items, total = mailbox.page("User3@Example.test", 2, 0)
    assert ([i["subject"] for i in items], total) == (["mail 18", "mail 13"], 4)
    assert [i["subject"] for i in mailbox.page("many499@example.test", 9, 0)[0]] == ["mail 7"]
    assert mailbox.page("nobody@example.test", 9, 0) == ([], 0)


async def test_a_mail_is_returned_as_it_was_received_and_an_unknown_id_is_none(tmp_path: Path) -> None:
    mailbox, ids = await _filled(tmp_path, 9)
    assert mailbox.raw(ids[7]) == b"Subject: mail 7\r\n\r\nHello\r\n"
    assert mailbox.raw("no id") is None
    assert mailbox.raw("00000000-0000-0000-0000-000000000000") is None


async def test_a_cleared_mailbox_is_empty_also_for_a_concurrent_reader(tmp_path: Path) -> None:
    mailbox, ids = await _filled(tmp_path, 9)
    other = Mailbox(tmp_path)
    await mailbox.clear()
    assert mailbox.page(None, 9, 0) == ([], 0)
    assert mailbox.raw(ids[0]) is None
    # It does not know about the deletion, like a read that began before it.
    assert other.page(None, 9, 0)[0] == []
    await mailbox.add("shop@example.test", ["new@example.test"], b"Subject: new\r\n\r\n" + b"Hello\r\n" * 500)
    assert [i["subject"] for i in other.page(None, 9, 0)[0]] == ["new"]
    assert other.raw(ids[3]) is None
