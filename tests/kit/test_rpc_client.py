"""Errors of gRPC calls: what a status becomes, and which text the caller gets."""

from __future__ import annotations

import pytest

from market.kit import errors
from market.kit.errors import BadInput, NotFound
from market.kit.rpc.client import problem_from_status


@pytest.mark.parametrize("sentence", ["there is no reservation 7", "no stock row for product 7"])
def test_a_not_found_status_keeps_the_upstreams_sentence(sentence: str) -> None:
    problem = problem_from_status(errors.GRPC_NOT_FOUND, sentence)
    assert isinstance(problem, NotFound)
    assert problem.document() == {
        "type": "urn:market:problem:not-found",
        "title": "Not found",
        "status": 404,
        "detail": sentence,
    }


def test_a_not_found_status_without_a_message_has_the_title_as_detail() -> None:
    assert problem_from_status(errors.GRPC_NOT_FOUND, "").document()["detail"] == "Not found"


def test_an_invalid_argument_status_names_the_field_before_the_colon() -> None:
    problem = problem_from_status(errors.GRPC_INVALID_ARGUMENT, "quantity: must be at least 1, got 0")
    assert isinstance(problem, BadInput)
    assert (problem.field, problem.reason) == ("quantity", "must be at least 1, got 0")
