"""The gateway's configuration."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from market.kit.auth.config import SignInConfig
from market.kit.config import Admission, Http, HttpUpstream, NonEmptyStr, Seconds, Section

Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=4096)]


class Limits(Section, frozen=True, kw_only=True):
    """The limits of one request."""

    # Length of the document. A document that contains an order of 1,000 lines has about 80,000.
    characters: Count = 200_000
    # A document that contains an order of 1,000 lines has about 8,000.
    tokens: Count = 10_000
    # Nested selection sets. GraphiQL's introspection query has 13.
    depth: Count = 16
    aliases: Count = 50
    # Fields after fragments are spread.
    fields: Count = 500
    # Fields of one name in one selection set, after fragments are spread. Validation compares them pairwise.
    repeats: Count = 100
    # CPU time for the validation of one document. An order of 1,000 lines takes 0.05 s.
    validation_seconds: Seconds = 0.5
    # Items on all pages of the request together. A page counts as many as its argument `limit`.
    list_items: Count = 2000
    # Distinct products of the order lines of one response. Products returns 100 at a time.
    joined_products: Count = 2000
    # Fields in a response to an introspection query. GraphiQL's query has about 2,000.
    introspection_fields: Count = 20_000


class DocumentCacheSize(Section, frozen=True, kw_only=True):
    """How much of the documents is cached: parsed, validated and compiled."""

    count: Count = 500
    # Documents are not cached if they, with the operation's name, are longer.
    characters: Count = 8000
    # The memory of all cached documents and their plans. One document may take an eighth of it.
    bytes: Annotated[int, Meta(ge=65_536)] = 12 * 1024 * 1024


class Memory(Section, frozen=True, kw_only=True):
    """The bytes that requests may hold, counted as upper bounds before they are allocated.

    How to choose the memory limit of the process is in docs/operations.md, "Limits of GraphQL requests".
    """

    # A request up to this size is small. A page of 100 orders of three lines with their products takes half of it.
    small_request_bytes: Bytes = 262_144
    # All small requests together, and the first bytes of large ones.
    small_requests_bytes: Bytes = 24 * 1024 * 1024
    # The limit of one request. A page of orders that fills the 8 MiB that REST permits takes nine tenths of it.
    request_bytes: Bytes = 72 * 1024 * 1024
    # All large requests together. A request waits until others have released enough.
    large_requests_bytes: Bytes = 72 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.request_bytes > self.large_requests_bytes:
            raise ValueError(
                f"request_bytes must not exceed large_requests_bytes, got {self.request_bytes} and "
                f"{self.large_requests_bytes}"
            )


class TrustedDocuments(Section, frozen=True, kw_only=True):
    """An operator's list of documents, which clients may name by their id."""

    # JSON: documents by id, or an Apollo persisted query manifest. Read at start.
    file: NonEmptyStr
    # Execute these documents, and no others.
    only: bool = False


class GraphiQL(Section, frozen=True, kw_only=True):
    """Sign-in on the GraphiQL page, at `auth.issuer` (docs/operations.md, "Sign-in to GraphQL")."""

    # The issuer's id for the page: a public client, whose redirect URI is the shop's /graphql. Without it, the page has
    # a field for a token, but no button.
    client_id: NonEmptyStr | None = None
    scope: NonEmptyStr = "openid email"
    # Further parameters that the issuer requires, such as the audience of the token at Auth0.
    authorization_parameters: dict[str, str] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if "openid" not in self.scope.split():
            raise ValueError(f"scope must contain openid, got {self.scope}")


class GatewayHttp(Http, frozen=True, kw_only=True):
    """The gateway's HTTP edge. Its buffers are smaller than the defaults: executing requests needs memory, too."""

    # Each takes about 50 KiB of memory, even while it only waits.
    max_in_flight: Count = 512
    max_in_flight_per_caller: Count = 384
    # Each takes about 10 KiB of memory.
    max_connections: Count = 2048
    max_in_flight_body_bytes: Annotated[int, Meta(ge=1_048_576)] = 16 * 1024 * 1024
    max_receive_buffer_bytes: Annotated[int, Meta(ge=1_048_576)] = 16 * 1024 * 1024
    # Large responses are handed over in pieces of 64 KiB.
    max_send_buffer_bytes: Annotated[int, Meta(ge=1_048_576)] = 16 * 1024 * 1024


class Config(SignInConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    http: GatewayHttp
    # A request weighs the objects in its body (an order's lines), or the items that its pages may have.
    admission: Admission = Admission(max_waiting_weight=200_000)
    products: HttpUpstream
    orders: HttpUpstream
    limits: Limits = Limits()
    documents: DocumentCacheSize = DocumentCacheSize()
    memory: Memory = Memory()
    trusted_documents: TrustedDocuments | None = None
    graphiql: GraphiQL = GraphiQL()

    def __post_init__(self) -> None:
        super().__post_init__()
        client_id = self.graphiql.client_id
        if client_id is not None and not self.auth.is_required:
            raise ValueError("graphiql.client_id can only be set if auth.mode is required")
        if client_id == self.auth.audience:
            # The client id is the audience of the page's ID tokens, which would then be accepted as access tokens.
            raise ValueError(f"graphiql.client_id must not be auth.audience, got {client_id} for both")
