"""The pages of an import: the form for the file, the dry run, and the run, which does what the dry run has shown.

The server stores nothing between two requests. The form of each page contains the whole import
(market.storefront.importing.job), and the next request sends it back.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.responses import Response

from market.contracts.access import CHANGE_PRODUCTS
from market.kit.errors import TooLarge
from market.storefront.desk.sections import Section
from market.storefront.importing import report
from market.storefront.importing.importer import BRIEF_STEP_SECONDS, STEP_SECONDS
from market.storefront.importing.job import Job, select
from market.storefront.importing.online_retail import MAX_QUANTITY, InvalidFile
from market.storefront.pages.visit import Visit
from market.storefront.texts.languages import N_

_PATH = "/desk/import"
# Rows per page of the table.
_ROWS_PER_PAGE = 50


@dataclass(frozen=True)
class Mistake:
    """Why a file was not read. text: marked with N_. values: of its placeholders. detail: the reader's message."""

    text: str
    values: dict[str, str]
    detail: str = ""


async def get_form(visit: Visit) -> Response:
    """Show the form for a file."""
    return _form(visit)


async def do_step(visit: Visit) -> Response:
    """Do what the form requests: read a file, continue the import, or show another part of it."""
    importer = visit.site.importer
    async with importer.admit():
        step, _, view = visit.value("step").partition(":")
        if step in ("", "read"):
            return await _read(visit)
        job = await importer.unpack(visit.value("job"), visit.session.id)
        if step == "report":
            return _report(job)
        if step == "start" and job.is_compared and not job.is_started:
            job.is_started, job.seconds = True, 0.0
        wait_seconds = None
        if step in ("compare", "start", "run"):
            seconds = BRIEF_STEP_SECONDS if visit.value("brief") else STEP_SECONDS
            wait_seconds = await importer.step(job, seconds)
        return await _show(visit, job, view, is_stopped=step in ("stop", "view"), wait_seconds=wait_seconds)


async def _read(visit: Visit) -> Response:
    """Read the file, and start comparing it with the shop."""
    importer, upload = visit.site.importer, visit.upload
    if upload is None or not upload.name:
        return _form(visit, Mistake(N_("Please choose a file."), {}))
    max_bytes = importer.max_file_bytes
    if len(upload.data) > max_bytes:
        values = {"size": visit.language.number(len(upload.data)), "limit": visit.language.number(max_bytes)}
        text = N_("The file has %(size)s bytes, and may have at most %(limit)s. Please split it.")
        return _form(visit, Mistake(text, values), status=413)
    stock = visit.value("stock")
    if stock and not (stock.isascii() and stock.isdigit() and len(stock) <= 10 and int(stock) <= MAX_QUANTITY):
        text = N_("The stock must be a whole number from 0 to %(limit)s.")
        return _form(visit, Mistake(text, {"limit": visit.language.number(MAX_QUANTITY)}))
    try:
        job = await importer.read(
            upload.data, upload.name, stock=int(stock) if stock else None, session_id=visit.session.id
        )
    except InvalidFile as e:
        return _form(visit, Mistake(N_("The file cannot be imported:"), {}, str(e)))
    if not job.items:
        return _form(visit, Mistake(N_("The file has no products."), {}))
    wait_seconds = await importer.step(job, BRIEF_STEP_SECONDS)
    try:
        return await _show(visit, job, "", is_stopped=False, wait_seconds=wait_seconds)
    except TooLarge as e:
        return _form(visit, Mistake(N_("The file cannot be imported:"), {}, f"{upload.name}: {e.reason}"), status=413)


async def _show(visit: Visit, job: Job, view: str, *, is_stopped: bool, wait_seconds: int | None) -> Response:
    """Return the page with the job's progress, or, if the dry run or the run is complete or stopped, with its rows."""
    packed = await visit.site.importer.pack(job)
    if not job.is_compared or (job.is_started and not job.is_done and not is_stopped):
        return visit.page("desk/import_progress.html", job=job, packed=packed, wait_seconds=wait_seconds)
    name, _, number = view.partition(":")
    items = select(job.items, name)
    last = max(0, (len(items) - 1) // _ROWS_PER_PAGE)
    page = min(int(number), last) if number.isascii() and number.isdigit() and len(number) < 6 else 0
    return visit.page(
        "desk/import_rows.html",
        job=job,
        packed=packed,
        view=name,
        items=items[page * _ROWS_PER_PAGE : (page + 1) * _ROWS_PER_PAGE],
        page_number=page,
        last_page=last,
    )


def _report(job: Job) -> Response:
    headers = {
        "content-type": "text/csv; charset=utf-8",
        "content-disposition": f'attachment; filename="{"import" if job.is_started else "dry-run"}.csv"',
        "x-content-type-options": "nosniff",
        "cache-control": "private, no-store",
    }
    return Response(report.write(job), headers=headers)


def _form(visit: Visit, mistake: Mistake | None = None, *, status: int = 400) -> Response:
    return visit.page("desk/import.html", status=status if mistake else 200, mistake=mistake)


SECTIONS = (
    Section(
        path=_PATH,
        title=N_("Import"),
        explanation=N_("Products from a file, with a dry run that shows what would happen."),
        access=CHANGE_PRODUCTS,
        routes={f"GET {_PATH}": get_form, f"POST {_PATH}": do_step},
        slow=frozenset({f"POST {_PATH}"}),
        takes_files=frozenset({f"POST {_PATH}"}),
    ),
)
