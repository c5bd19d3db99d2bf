"""Trusted documents: an operator's list of documents, which clients may name by an id instead of sending the text.

The ids are usually the SHA-256 of the text, computed by tools of clients. The file has one of two formats:

    {"ID": "query Name { ... }", ...}                                      graphql-codegen, Relay
    {"format": "apollo-persisted-query-manifest", "version": 1,            Apollo
     "operations": [{"id": "ID", "name": "Name", "type": "query", "body": "query Name { ... }"}, ...]}
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from market.graphql.config import TrustedDocuments
from market.graphql.domain import FieldError
from market.graphql.engine.documents import DocumentCache

_MAX_FILE_BYTES = 8 * 1024 * 1024
# Of the document id in the specification's draft: https://github.com/graphql/graphql-over-http/pull/264
_PREFIX = "sha256:"


class InvalidTrustedDocuments(OSError):
    """The file cannot be used. The text names it, the document and the reason."""


class _ManifestOperation(Struct):
    id: str
    body: str


class _Manifest(Struct):
    operations: list[_ManifestOperation]


class Trusted:
    """The documents that clients may name, and whether they may send others."""

    def __init__(self, by_id: dict[str, str], *, only: bool) -> None:
        self._by_id = by_id
        self._texts = frozenset(by_id.values())
        self._only = only

    @classmethod
    def load(cls, config: TrustedDocuments | None, documents: DocumentCache) -> Trusted:
        """Return the configured documents. Raises InvalidTrustedDocuments if one of them cannot be executed."""
        if config is None:
            return cls({}, only=False)
        where = f"trusted_documents.file: {config.file}"
        try:
            data = Path(config.file).read_bytes()
        except OSError as e:
            raise InvalidTrustedDocuments(f"{where}: cannot be read: {e.strerror}") from None
        if len(data) > _MAX_FILE_BYTES:
            raise InvalidTrustedDocuments(f"{where}: must have at most {_MAX_FILE_BYTES} bytes, got {len(data)}")
        try:
            by_id = _parse(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            reason = "must be a JSON object of documents by id, or an Apollo persisted query manifest"
            raise InvalidTrustedDocuments(f"{where}: {reason}") from None
        for document_id, text in by_id.items():
            if error := documents.validate(text):
                raise InvalidTrustedDocuments(f"{where}: document {document_id[:100]}: {error}")
        return cls(by_id, only=config.only)

    def text(self, query: str | None, document_id: str | None) -> str:
        """Return the text to execute: what the client sent, or the document that it named.

        Raises FieldError, with Apollo's codes, for a document that it may not send, or that is unknown.
        """
        if query is not None:
            if self._only and query not in self._texts:
                message = "this server executes only the documents on its list, and this one is not on it"
                raise FieldError(message, "QUERY_NOT_IN_SAFELIST")
            return query
        assert document_id is not None
        for name in (document_id, document_id.removeprefix(_PREFIX)):
            if name in self._by_id:
                return self._by_id[name]
        if self._only:
            message = f"no document {document_id[:100]} is on the list of this server"
            raise FieldError(message, "PERSISTED_QUERY_NOT_IN_LIST")
        # Apollo Client sends the text from then on. Its older versions look at the message.
        raise FieldError("PersistedQueryNotSupported", "PERSISTED_QUERY_NOT_SUPPORTED")


def _parse(data: bytes) -> dict[str, str]:
    if isinstance(msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("operations"), msgspec.Raw):
        manifest = msgspec.json.decode(data, type=_Manifest)
        return {operation.id: operation.body for operation in manifest.operations}
    return msgspec.json.decode(data, type=dict[str, str])
