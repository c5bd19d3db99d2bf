"""Responses to requests that are refused before their body has been read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from market.kit import context
from market.kit.errors import Malformed, NotImplementedByServer, Problem
from market.kit.http.responses import problem_response

if TYPE_CHECKING:
    from market.kit.http.protocol import HttpProtocol


def encode(problem: Problem, default_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the problem document as the bytes of an HTTP/1.1 response, with `Connection: close`."""
    response = problem_response(problem)
    request_id = context.new_request_id().encode()
    content = [STATUS_LINE[response.status_code]]
    for name, value in (
        *default_headers,
        *response.raw_headers,
        (b"x-request-id", request_id),
        (b"connection", b"close"),
    ):
        content += [name, b": ", value, b"\r\n"]
    return b"".join([*content, b"\r\n", bytes(response.body)])


def from_parser_error(error: httptools.HttpParserError) -> Problem:
    """Return the problem to report for an error of the parser."""
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return NotImplementedByServer("the method is unknown")
    if isinstance(error, httptools.HttpParserInvalidURLError) or isinstance(
        error.__context__, httptools.HttpParserInvalidURLError
    ):
        return Malformed("URL", "must be percent-encoded, and begin with / or http://")
    return Malformed("request", "is not valid HTTP/1.1; spaces in its URL must be percent-encoded")


class LingeringTransport:
    """A transport for a response to an oversized request. Its `close` calls HttpProtocol.linger instead of closing."""

    def __init__(self, connection: HttpProtocol) -> None:
        self._connection = connection

    def write(self, data: bytes) -> None:
        self._connection.transport.write(data)

    def is_closing(self) -> bool:
        return self._connection.transport.is_closing()

    def close(self) -> None:
        self._connection.linger()
