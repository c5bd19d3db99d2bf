"""What the mail server keeps is found again: by page, by address, by id, and after a restart."""

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


async def test_a_page_has_the_newest_first_and_a_restart_changes_nothing(tmp_path: Path) -> None:
    mailbox, _ = await _filled(tmp_path, 23)
    for kept in (mailbox, Mailbox(tmp_path)):
        items, total = kept.page(None, 3, 1)
        assert ([i["subject"] for i in items], total) == (["mail 21", "mail 20", "mail 19"], 23)


async def test_an_address_is_found_whatever_its_case_and_its_place_among_many(tmp_path: Path) -> None:
    mailbox, _ = await _filled(tmp_path, 23)
    items, total = mailbox.page("User3@Example.test", 2, 0)
    assert ([i["subject"] for i in items], total) == (["mail 18", "mail 13"], 4)
    assert [i["subject"] for i in mailbox.page("many499@example.test", 9, 0)[0]] == ["mail 7"]
    assert mailbox.page("nobody@example.test", 9, 0) == ([], 0)


async def test_a_mail_is_given_as_it_came_and_an_unknown_one_is_not_there(tmp_path: Path) -> None:
    mailbox, ids = await _filled(tmp_path, 9)
    assert mailbox.raw(ids[7]) == b"Subject: mail 7\r\n\r\nHello\r\n"
    assert mailbox.raw("no id") is None
    assert mailbox.raw("00000000-0000-0000-0000-000000000000") is None


async def test_an_emptied_box_is_empty_also_for_who_looks_meanwhile(tmp_path: Path) -> None:
    mailbox, ids = await _filled(tmp_path, 9)
    other = Mailbox(tmp_path)
    await mailbox.clear()
    assert mailbox.page(None, 9, 0) == ([], 0)
    assert mailbox.raw(ids[0]) is None
    # It has not heard of it, as a look that began before.
    assert other.page(None, 9, 0)[0] == []
    await mailbox.add("shop@example.test", ["new@example.test"], b"Subject: new\r\n\r\n" + b"Hello\r\n" * 500)
    assert [i["subject"] for i in other.page(None, 9, 0)[0]] == ["new"]
    assert other.raw(ids[3]) is None
