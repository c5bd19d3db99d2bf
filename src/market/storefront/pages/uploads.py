"""Parsing forms with a file (multipart/form-data). The file is kept in memory, never on disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from market.kit.errors import Malformed

MULTIPART = b"multipart/form-data"
_MAX_FIELDS = 10
_MAX_NAME_CHARACTERS = 100


@dataclass(frozen=True)
class Upload:
    """A file that a visitor has sent. `name`: its name without directories, at most 100 characters."""

    name: str
    data: bytes


class _InMemoryParser(MultiPartParser):
    # Keep the file in memory. The body is in memory anyway, and the HTTP server limits its size.
    spool_max_size = 0


async def read_multipart(request: Request) -> tuple[dict[str, list[str]], Upload | None]:
    """Return the fields of the form, and its file; None if it has none. Raises Malformed."""

    async def body() -> AsyncIterator[bytes]:
        yield await request.body()

    # Browsers send UTF-8. The parser accepts any codec of Python, and some take quadratic time.
    _, parameters = parse_options_header(request.headers["content-type"])
    if parameters.get(b"charset", b"utf-8").lower() != b"utf-8":
        raise Malformed("body", "must be in UTF-8")
    parser = _InMemoryParser(request.headers, body(), max_files=1, max_fields=_MAX_FIELDS)  # type: ignore[arg-type]
    fields: dict[str, list[str]] = {}
    upload = None
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError):
        raise Malformed("body", "is not a form with one file") from None
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                upload = Upload(_plain(value.filename or ""), await value.read())
            else:
                fields.setdefault(name, []).append(value)
    finally:
        await form.close()
    return fields, upload


def _plain(name: str) -> str:
    """Return a file name without directories and unprintable characters."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in last if c.isprintable())[:_MAX_NAME_CHARACTERS]
