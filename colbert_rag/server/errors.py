"""What goes wrong, as a status and a body that the clients of other servers parse."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from colbert_rag.errors import (
    CheckpointError,
    ColBERTRagError,
    DeviceMemoryError,
    IndexBusyError,
    IndexCorruptError,
    IndexMismatchError,
    IndexStorageError,
    MissingExtraError,
    ScoringError,
    ServerError,
)
from colbert_rag.remote.wire import error_body

logger = logging.getLogger(__name__)

CODES = {
    HTTPStatus.UNAUTHORIZED: "invalid_api_key",
    HTTPStatus.FORBIDDEN: "forbidden",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_TIMEOUT: "slow_request",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "overloaded",
    HTTPStatus.SERVICE_UNAVAILABLE: "unavailable",
    HTTPStatus.GATEWAY_TIMEOUT: "deadline_exceeded",
}
"""What a program tells errors apart by, where the error does not say it itself."""

OURS: Mapping[type[ColBERTRagError], tuple[HTTPStatus, str]] = {
    CheckpointError: (HTTPStatus.INTERNAL_SERVER_ERROR, "model_failed"),
    DeviceMemoryError: (HTTPStatus.SERVICE_UNAVAILABLE, "out_of_memory"),
    IndexBusyError: (HTTPStatus.SERVICE_UNAVAILABLE, "index_busy"),
    IndexCorruptError: (HTTPStatus.INTERNAL_SERVER_ERROR, "index_corrupt"),
    IndexMismatchError: (HTTPStatus.INTERNAL_SERVER_ERROR, "index_mismatch"),
    IndexStorageError: (HTTPStatus.INSUFFICIENT_STORAGE, "index_storage"),
    MissingExtraError: (HTTPStatus.NOT_IMPLEMENTED, "missing_extra"),
    ScoringError: (HTTPStatus.INTERNAL_SERVER_ERROR, "no_finite_score"),
    ServerError: (HTTPStatus.BAD_GATEWAY, "server_behind_failed"),
}
"""Errors of the package that are not the client's fault; all others are a bad request."""

JSON_HINT = "expected a JSON object, sent with Content-Type: application/json"


class ApiError(Exception):
    """A refusal whose words and status are decided where it is raised."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        allow: Sequence[str] = (),
    ) -> None:
        """Say what was found, what was expected, and what to do.

        Args:
            status: Of HTTP.
            message: For a person.
            code: For a program; None takes that of the status.
            param: The field of the request that is wrong.
            retry_after: Seconds after which to try again.
            allow: Methods that the path takes.
        """
        super().__init__(message)
        self.status = HTTPStatus(status)
        self.message = message
        self.code = code or CODES.get(self.status, "invalid_request")
        self.param = param
        self.retry_after = retry_after
        self.allow = allow

    def response(self) -> JSONResponse:
        """What the client gets."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = KINDS.get(self.status, kind)
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.allow:
            headers["Allow"] = ", ".join(self.allow)
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status == HTTPStatus.REQUEST_TIMEOUT:
            # RFC 9110, 15.5.9: else the rest may trickle on, and hold the connection for ever.
            headers["Connection"] = "close"
        body = error_body(self.message, kind=kind, code=self.code, param=self.param)
        return JSONResponse(body, self.status, headers)


KINDS = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


def as_api_error(error: Exception) -> ApiError:
    """Any error as what the client is told; of our own faults, only that there was one."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ColBERTRagError):
        return _of_package(error)
    if isinstance(error, HTTPException):
        return _of_http(error)
    log_fault(error)
    return ApiError(500, "the server failed; its log says where", code="internal_error")


def _of_package(error: ColBERTRagError) -> ApiError:
    for kind, (status, code) in OURS.items():
        if isinstance(error, kind):
            log_fault(error)
            retry = 1 if status == HTTPStatus.SERVICE_UNAVAILABLE else None
            # Their messages name files of this machine, which are not for every client to know.
            message = f"the server failed: {HTTPStatus(status).phrase.lower()} ({code})"
            if isinstance(error, IndexBusyError):
                message = "another process is writing to the index; try again"
            return ApiError(status, message, code=code, retry_after=retry)
    return ApiError(400, str(error))


def _of_http(error: HTTPException) -> ApiError:
    message = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND and message == "Not Found":
        message = "there is nothing at this path; GET /openapi.json lists what there is"
    if error.status_code == HTTPStatus.BAD_REQUEST and "parsing the body" in message:
        message = f"the body cannot be read, {JSON_HINT}"
    return ApiError(error.status_code, message)


def log_fault(error: BaseException) -> None:
    """Log where something failed, but not its message, which may quote what a user sent."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s at\n%s", type(error).__name__, frames)


def validation_error(errors: Sequence[Mapping[str, Any]], content_type: str = "") -> ApiError:
    """What pydantic found, in one sentence without what the user sent."""
    first = errors[0]
    kind, place = first["type"], [str(part) for part in first["loc"][1:]]
    if kind == "json_invalid":
        where = f" at character {first['loc'][-1]}"
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']}{where}")
    if kind == "value_error":
        message = str(first["ctx"]["error"])
        named = re.match(r"(query|queries|documents|text_[12]|input|exact|effort)\b", message)
        return ApiError(400, message, param=named[0] if named else None)
    if not place:
        body = first.get("input")
        # Bytes are a body that was not read, and one that begins like this is meant as an object.
        if isinstance(body, bytes) and body.lstrip().startswith(b"{"):
            sent = f"is {content_type[:80]}" if content_type else "is missing"
            return ApiError(400, f"the Content-Type {sent}, expected application/json")
        return ApiError(400, f"the body is {_kind(body)}, {JSON_HINT}")
    name = ".".join(place)
    if kind == "missing":
        return ApiError(400, f"{name} is missing", param=place[0])
    message = str(first["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    found = _kind(first.get("input"))
    return ApiError(400, f"{name} is {found}, expected {message}", param=place[0])


def _kind(value: object) -> str:
    """What was found: numbers and flags as they are, and of a text only that it is one."""
    if value is None or isinstance(value, bool):
        return "missing" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return str(value)[:40]
    names: dict[type, str] = {str: "a string", dict: "an object", list: "a list", bytes: "no JSON"}
    return names.get(type(value), "of another type")


def _methods(app: FastAPI, request: Request) -> list[str]:
    """What a path takes: starlette's error knows of the first route alone."""
    fitting = (route for route in app.routes if route.matches(request.scope)[0] != Match.NONE)
    return sorted({method for route in fitting for method in getattr(route, "methods", None) or ()})


def add_handlers(app: FastAPI) -> None:
    """Have every error of a route answered in one shape."""

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        content_type = request.headers.get("Content-Type", "")
        return validation_error(error.errors(), content_type).response()

    async def answer(request: Request, error: Exception) -> JSONResponse:
        answered = as_api_error(error)
        if answered.status == HTTPStatus.METHOD_NOT_ALLOWED:
            answered.allow = _methods(app, request)
        return answered.response()

    app.add_exception_handler(RequestValidationError, invalid)
    for kind in (ApiError, ColBERTRagError, HTTPException):
        app.add_exception_handler(kind, answer)
