"""Which error is whose fault, and that a client is told no more of ours than there was one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from starlette.exceptions import HTTPException

from colbert_rag import errors
from colbert_rag.errors import ColBERTRagError, MissingExtraError
from colbert_rag.server.errors import ApiError, as_api_error

SECRET = "/home/ada/diary.sqlite"

THEIRS = {"InvalidQueryError", "InvalidFilterError", "ReadingError", "EvaluationError"}
"""Errors in what a client sent; all others are the server's own."""


def kinds(kind: type[ColBERTRagError] = ColBERTRagError) -> Iterator[type[ColBERTRagError]]:
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield below
            yield from kinds(below)


@pytest.mark.parametrize("kind", sorted(kinds(), key=lambda kind: kind.__name__))
def test_every_error_of_the_package_is_theirs_or_ours(
    kind: type[ColBERTRagError], caplog: pytest.LogCaptureFixture
) -> None:
    error = MissingExtraError(SECRET, extra="x") if kind is MissingExtraError else kind(SECRET)

    found = as_api_error(error)

    if kind.__name__ in THEIRS:
        assert found.status == 400
        assert found.message == SECRET
        assert not caplog.records
    else:
        assert found.status >= 500
        # It names a file of this machine, and may quote what somebody else sent.
        assert SECRET not in found.message
        assert SECRET not in caplog.text
        assert kind.__name__ in caplog.text


def test_what_nobody_expected_is_logged_by_its_place_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    try:
        raise ArithmeticError(SECRET)
    except ArithmeticError as error:
        found = as_api_error(error)

    assert found.status == 500
    assert SECRET not in found.message + caplog.text
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "ArithmeticError at" in record.getMessage()
    assert __file__ in record.getMessage()


def test_who_should_come_back_is_told_when() -> None:
    answer = ApiError(429, "later", code="queue_full", retry_after=7).response()

    assert answer.headers["retry-after"] == "7"
    assert json.loads(answer.body)["error"] == {
        "message": "later",
        "type": "rate_limit_error",
        "code": "queue_full",
        "param": None,
    }
    assert as_api_error(errors.IndexBusyError("x")).response().headers["retry-after"] == "1"


def test_an_error_of_the_framework_keeps_its_status() -> None:
    found = as_api_error(HTTPException(405, "Method Not Allowed"))

    assert (found.status, found.code) == (405, "method_not_allowed")
