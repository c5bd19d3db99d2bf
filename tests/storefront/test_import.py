"""The import of a file at the desk, on the whole shop: the dry run, the import, conflicts, outages and repetitions."""

from __future__ import annotations

import asyncio
import csv
from io import StringIO

import pytest

from tests.storefront.importing import (
    HEADER,
    PATH,
    codes,
    dry_run,
    finish,
    job_form,
    new_word,
    press,
    products_with,
    retail,
    run_all,
    upload,
)
from tests.storefront.test_outages import dead
from tests.storefront.visitor import Document, Shop, Visitor
from tests.support.waiting import until


def imported(word: str, name: str, code: str, **fields: object) -> dict[str, object]:
    """Return the fields of a product as an import creates it."""
    return {"name": f"{word} {name}", "description": f"{word} {name}. Stock code {code.upper()}.", **fields}


async def test_a_dry_run_shows_each_row_and_changes_nothing(shop: Shop, visitor: Visitor) -> None:
    word = new_word()
    await shop.create_product(**imported(word, "bowl", f"{word}2", price="3.05", stock=9))
    await shop.create_product(**imported(word, "jar", f"{word}3", price="9.99", stock=7))
    before = await products_with(shop, word)
    page = await dry_run(
        visitor, retail(f"{word}1;{word} mug;6;2.55", f"{word}2;{word} bowl;2;3.05", f"{word}3;{word} jug;1;9.00")
    )
    assert "Nothing has changed yet." in page.text
    assert "Start: 2 products" in page.text
    assert f"{word} mug {word.upper()}1 would be created £2.55 · 6 units in stock" in page.text
    assert f"{word} bowl {word.upper()}2 unchanged" in page.text
    assert (
        f"{word} jug {word.upper()}3 would be changed Product name: {word} jar → {word} jug Description: "
        f"{word} jar. Stock code {word.upper()}3. → {word} jug. Stock code {word.upper()}3. Price: £9.99 → £9.00"
    ) in page.text
    assert await products_with(shop, word) == before


async def test_an_import_does_what_the_dry_run_has_shown_and_repeating_any_step_does_nothing_twice(
    shop: Shop, visitor: Visitor
) -> None:
    word = new_word()
    existing = await shop.create_product(**imported(word, "jar", f"{word}3", price="9.99", stock=7))
    data = retail(f"{word}1;{word} mug;6;2.55", f"{word}3;{word} jar;1;9.00", f"{word}1;{word} mug;4;2.55")
    shown = await dry_run(visitor, data)
    # A double click on the button: both requests have the same form.
    first, second = await asyncio.gather(press(visitor, shown, "start"), press(visitor, shown, "start"))
    done = await finish(visitor, first, "run")
    await finish(visitor, second, "run")
    assert "The import is done." in done.text
    assert f"{word} mug {word.upper()}1 created" in done.text
    assert f"{word} jar {word.upper()}3 changed" in done.text
    jar, mug = await products_with(shop, word)
    assert (mug["name"], mug["price"], mug["currency"], mug["stock"]) == (f"{word} mug", "2.55", "GBP", 10)
    # The stock of a product that exists is what it was.
    assert (jar["id"], jar["price"], jar["stock"]) == (existing["id"], "9.00", 7)
    for page in (shown, first):
        again = await run_all(visitor, page) if page is shown else await finish(visitor, page, "run")
        assert "The import is done." in again.text
    assert await products_with(shop, word) == [jar, mug]
    assert "There is nothing to import" in (await dry_run(visitor, data)).text


async def test_the_stock_of_new_products_can_be_chosen(shop: Shop, visitor: Visitor) -> None:
    word = new_word()
    await run_all(visitor, await dry_run(visitor, retail(f"{word};{word};6;1.00"), stock="500"))
    assert [product["stock"] for product in await products_with(shop, word)] == [500]


async def test_what_was_changed_deleted_or_created_after_the_dry_run_is_a_conflict_and_is_not_overwritten(
    shop: Shop, visitor: Visitor
) -> None:
    word = new_word()
    changed, deleted = [
        await shop.create_product(**imported(word, name, f"{word}{i}", price="5.00"))
        for i, name in enumerate(("changed", "deleted"))
    ]
    lines = [f"{word}{i};{word} {name};1;6.00" for i, name in enumerate(("changed", "deleted", "created", "new"))]
    page = await dry_run(visitor, retail(*lines))
    await shop.change_product(changed, price="7.00")
    url = f"{shop.stack.urls['products']}/api/product"
    (await shop.http.delete(f"{url}/{deleted['id']}")).raise_for_status()
    await shop.create_product(**imported(word, "created", f"{word}2", price="8.00"))
    done = await run_all(visitor, page)
    assert "The import is done, except for the rows with a conflict" in done.text
    assert "conflict It was changed after the dry run, and was not overwritten." in done.text
    assert "conflict It was deleted after the dry run." in done.text
    assert "conflict Somebody else has created it after the dry run" in done.text
    assert [(p["name"], p["price"]) for p in await products_with(shop, word)] == [
        (f"{word} changed", "7.00"),
        (f"{word} created", "8.00"),
        (f"{word} new", "6.00"),
    ]
    only_conflicts = await press(visitor, done, "view:conflict")
    assert f"{word} created" in only_conflicts.text
    assert f"{word} new" not in only_conflicts.text


async def test_a_product_without_its_code_is_not_created_again(shop: Shop, visitor: Visitor) -> None:
    word = new_word()
    data = retail(f"{word};{word};1;6.00")
    await run_all(visitor, await dry_run(visitor, data))
    [product] = await products_with(shop, word)
    await shop.change_product(product, description=f"{word} without a code")
    done = await run_all(visitor, await dry_run(visitor, data))
    assert "conflict It was imported before, but its description does not have the stock code any more." in done.text
    assert [p["description"] for p in await products_with(shop, word)] == [f"{word} without a code"]


async def test_invalid_rows_are_refused_with_column_rule_and_value_and_the_others_are_imported(
    shop: Shop, visitor: Visitor
) -> None:
    word = new_word()
    page = await dry_run(
        visitor, retail(f"{word}1;{word} mug;six;2.55", f"{word}2;{word} bowl;2;3.05", f"{word}3;{word} jug;1;free")
    )
    assert "2 – refused Quantity: must be a whole number, got 'six'" in page.text
    assert "4 – refused UnitPrice: must be a price such as 2.55, at most 99999999.99, got 'free'" in page.text
    await run_all(visitor, page)
    assert [p["name"] for p in await products_with(shop, word)] == [f"{word} bowl"]


async def test_the_report_is_a_csv_file_without_formulas(visitor: Visitor) -> None:
    word = new_word()
    page = await dry_run(
        visitor, retail(f'{word};=HYPERLINK(""http://x.test/{word}"");1;2.00', f"-{word};@{word};1;2.00", "x;y;z;1")
    )
    form = job_form(page)
    fields = dict([*form.fields, ("step", "report")])
    response = await visitor.http.post(PATH, data=fields, headers={"origin": visitor.url})
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == 'attachment; filename="dry-run.csv"'
    rows = list(csv.DictReader(StringIO(response.content.decode("utf-8-sig"))))
    assert [(row["line"], row["stock code"], row["name"], row["plan"], row["reason"]) for row in rows] == [
        ("2", word.upper(), f'\'=HYPERLINK("http://x.test/{word}")', "create", ""),
        ("3", f"'-{word.upper()}", f"'@{word}", "create", ""),
        ("4", "", "", "refuse", "must be a whole number, got 'z'"),
    ]
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())


@pytest.mark.parametrize(
    ("data", "status", "text"),
    [
        (b"", 400, "products.csv: is empty"),
        (HEADER.encode(), 400, "The file has no products."),
        (HEADER.encode("utf-16"), 400, "is in UTF-16, and must be in UTF-8"),
        (HEADER.encode() + b"\n1,2,\xa3,1,2010-12-01,1,,UK\n", 400, "line 2: is not UTF-8"),
        (b"PK\x03\x04\x14\x00", 400, "is an Excel workbook; save it as CSV in UTF-8"),
        (HEADER.replace(",", ";").encode(), 400, "its fields are separated by semicolons"),
        (b"id,title,price\n1,Rose,3500\n", 400, "line 1, column InvoiceNo: is missing"),
        (b'{"products": []}', 400, "column InvoiceNo: is missing"),
        (b"x" * 3_145_729, 413, "The file has 3,145,729 bytes, and may have at most 3,145,728."),
    ],
)
async def test_a_file_that_cannot_be_read_is_refused_with_the_reason(
    visitor: Visitor, data: bytes, status: int, text: str
) -> None:
    response = await upload(visitor, data)
    assert (response.status_code, text in Document(response.text).text) == (status, True), response.text


async def test_a_form_without_a_file_or_with_a_wrong_stock_is_refused_with_the_reason(visitor: Visitor) -> None:
    response = await upload(visitor, b"", name="")
    assert "Please choose a file." in Document(response.text).text
    response = await upload(visitor, retail("1;MUG;1;1"), stock="many")
    assert "The stock must be a whole number from 0 to 2,147,483,647." in Document(response.text).text


async def test_large_bodies_are_accepted_by_the_import_only(visitor: Visitor) -> None:
    form = (await visitor.open("/")).form("/language")
    fields = [*form.fields, ("filler", "x" * 1_048_576)]
    response = await visitor.http.post("/language", data=dict(fields), headers={"origin": visitor.url})
    assert response.status_code == 413


async def test_a_changed_job_and_one_of_another_session_are_refused(shop: Shop, visitor: Visitor) -> None:
    word = new_word()
    page = await dry_run(visitor, retail(f"{word};{word};1;6.00"))
    job = dict(job_form(page).fields)["job"]
    async with shop.new_visitor() as other:
        token = dict(job_form_token(await other.open(PATH)))
        fields = {"form_token": token["form_token"], "step": "start", "job": job}
        response = await other.http.post(PATH, data=fields, headers={"origin": shop.url})
        assert response.status_code == 400
    for changed in ("", "x", job[:-1], job[:100] + "A" + job[101:]):
        fields = {**dict(job_form(page).fields), "step": "start", "job": changed}
        response = await visitor.http.post(PATH, data=fields, headers={"origin": visitor.url})
        assert response.status_code == 400, changed
    assert await products_with(shop, word) == []


def job_form_token(page: Document) -> list[tuple[str, str]]:
    return page.form(PATH).fields


async def test_forms_of_other_sites_and_without_the_token_of_the_session_are_refused(
    shop: Shop, visitor: Visitor
) -> None:
    word = new_word()
    data = retail(f"{word};{word};1;6.00")
    page = await dry_run(visitor, data)
    fields = {**dict(job_form(page).fields), "step": "start"}
    response = await visitor.http.post(PATH, data=fields, headers={"origin": "https://other.test"})
    assert response.status_code == 403
    fields.pop("form_token")
    response = await visitor.http.post(PATH, data=fields, headers={"origin": visitor.url})
    assert response.status_code == 403
    files = {"file": ("a.csv", data)}
    response = await visitor.http.post(PATH, data={"step": "read"}, files=files, headers={"origin": visitor.url})
    assert response.status_code == 403
    assert await products_with(shop, word) == []


async def test_an_import_goes_on_where_it_was_after_products_was_killed_and_creates_everything_once(
    shop: Shop, visitor: Visitor
) -> None:
    word, count = new_word(), 60
    page = await dry_run(visitor, retail(*codes(word, count)))

    async def has_begun() -> bool:
        return bool(await products_with(shop, word))

    running = asyncio.create_task(press(visitor, page, "start"))
    await until(has_begun, what="a product of the import")
    async with dead(shop, "products"):
        interrupted = await running
        if ("step", "run") in job_form(interrupted).buttons:
            # Nothing is lost, and nothing is reported as failed.
            interrupted = await press(visitor, interrupted, "run")
            assert "The shop does not respond. Nothing is lost" in interrupted.text
            assert "Conflicts 0 Refused 0" in interrupted.text

    async def is_done() -> bool:
        nonlocal interrupted
        if ("step", "run") in job_form(interrupted).buttons:
            interrupted = await press(visitor, interrupted, "run")
        return "The import is done." in interrupted.text

    await until(is_done, what=lambda: interrupted.text)
    # The form of the first page again.
    assert "The import is done." in (await run_all(visitor, page)).text
    found = await products_with(shop, word)
    assert [(p["name"], p["price"], p["stock"]) for p in found] == [
        (f"{word} {i:03}", f"{i + 1}.50", i + 1) for i in range(count)
    ]


async def test_an_import_goes_on_at_another_process_and_can_be_stopped(shop: Shop, visitor: Visitor) -> None:
    word = new_word()
    page = await dry_run(visitor, retail(*codes(word, 3)))
    async with dead(shop, "storefront"):
        pass
    stopped = await press(visitor, page, "stop")
    assert "Start: 3 products" in stopped.text
    assert await products_with(shop, word) == []
    assert "The import is done." in (await run_all(visitor, page)).text
    assert len(await products_with(shop, word)) == 3


async def test_the_pages_are_in_russian_for_those_who_prefer_it(shop: Shop) -> None:
    word = new_word()
    async with shop.new_visitor(**{"accept-language": "ru"}) as visitor:
        page = await dry_run(visitor, retail(f"{word};{word};1;6.00"))
        assert "Пока ничего не изменилось." in page.text
        assert "Начать: 1 товар" in page.text
        assert "Импорт завершён." in (await run_all(visitor, page)).text
