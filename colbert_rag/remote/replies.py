"""Replies of a server: what they say, and which error a refusal becomes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from colbert_rag import errors
from colbert_rag.errors import (
    ServerAccessError,
    ServerAnswerError,
    ServerBusyError,
    ServerError,
    ServerTimeoutError,
    ServerUnreachableError,
)
from colbert_rag.remote.address import API_KEY
from colbert_rag.remote.connections import http
from colbert_rag.remote.wire import error_message

if TYPE_CHECKING:
    import httpx2


MOST_VALUES = 2**20
"""Values in the JSON of an answer at most: each takes some 70 bytes of memory, however short it is
written. A thousand documents with a thousand values of metadata each have so many."""

_LONGEST_MESSAGE = 2_000
"""Characters of what a server says that are shown."""


class TooLargeError(ServerError):
    """The server takes no request as large as this one; smaller ones may do."""


class GivenUpError(ServerTimeoutError):
    """The server gave a request up after its own deadline; smaller ones may do."""


class NotHeldError(ServerError):
    """There is nothing under this path."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask.

    Attributes:
        method: "GET", "POST" or "DELETE".
        path: Below the address of the server.
        body: Plain values for JSON; None for none.
        repeatable: Whether asking twice is the same as asking once.
        most: Bytes of an answer at most.
    """

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    repeatable: bool = True
    most: int = 64 * 2**20

    @property
    def content(self) -> bytes | None:
        """The body as it travels. Half a character becomes "?", as where text is tokenised."""
        if self.body is None:
            return None
        return json.dumps(self.body, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")

    def __str__(self) -> str:
        """In a message, without what was asked: that may be anything."""
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why there is no answer.

    Attributes:
        error: What to raise.
        cause: What was raised first.
        passing: Whether it may go by.
        unheard: Whether it may, and the request was surely not carried out.
        retry_after: Seconds after which the server would like to be asked again.
    """

    error: Exception
    cause: Exception | None = None
    passing: bool = False
    unheard: bool = False
    retry_after: float | None = None


_OWN: Mapping[str, type[errors.ColBERTRagError]] = {
    "index_busy": errors.IndexBusyError,
    "index_corrupt": errors.IndexCorruptError,
    "index_mismatch": errors.IndexMismatchError,
    "index_storage": errors.IndexStorageError,
    "no_finite_score": errors.ScoringError,
    "out_of_memory": errors.DeviceMemoryError,
}
"""Errors of ours that a server tells by these codes."""

_TOO_MUCH = ("too_many_explanations",)
"""Codes that mean the same as a 413."""

_LATE = "deadline_exceeded"
"""What our server calls its own deadline; a gateway before it has no code."""

_BUSY = (429, 503)
_PASSING = (*_BUSY, 502, 504)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    Attributes:
        status: The status.
        content: The body.
        kind: Its type, such as "application/json".
        location: Where a redirect leads.
        retry_after: Seconds, if the server says so.
    """

    status: int
    content: bytes
    kind: str
    location: str | None
    retry_after: float | None

    @classmethod
    def of(cls, status: int, headers: Mapping[str, str], content: bytes) -> Reply:
        """Read a response of the HTTP library."""
        return cls(
            status,
            content,
            headers.get("content-type", "").partition(";")[0].strip().lower(),
            headers.get("location"),
            _seconds(headers.get("retry-after")),
        )

    def refusal(self, request: Request, base: str, key: str | None) -> Refusal | None:
        """Why this is no answer; None if it is one."""
        if 200 <= self.status < 300:
            return None
        body = _json(self.content)
        message = error_message(body)
        if message is not None and len(message) > _LONGEST_MESSAGE:
            message = f"{message[:_LONGEST_MESSAGE]}..."
        return Refusal(
            error=_error(self, request, base, key, body, message),
            # The same again would take as long: it is halved instead.
            passing=self.status in _PASSING and _code(body) != _LATE,
            unheard=self.status in _BUSY,
            retry_after=self.retry_after if self.status in _BUSY else None,
        )


def _error(
    reply: Reply, request: Request, base: str, key: str | None, body: object, message: str | None
) -> Exception:
    status, code, said = reply.status, _code(body), f": {message}" if message else ""
    if 300 <= status < 400:
        return ServerAnswerError(
            f"{base} answers {request} with a redirect to {reply.location!r}. Nothing is sent "
            "there unasked, since texts and keys would go along: use that address instead"
        )
    if status == 403 and message is not None:
        return ServerAccessError(f"{base} does not allow {request}{said}")
    if status in (401, 403):
        found = "the key was refused" if key else "no key was sent"
        return ServerAccessError(
            f"{base} answers {status} ({found}){said}. Its key goes into the environment variable "
            f"{API_KEY}, or into api_key, which is never pickled"
        )
    if (kind := _OWN.get(code)) is not None:
        return kind(f"{base} answers {request} with status {status}{said}")
    if status in _BUSY:
        return ServerBusyError(
            f"{base} has too much to do, or is about to stop ({status}){said}. Ask again later, or "
            "less at once"
        )
    if status == 502:
        return ServerUnreachableError(f"the gateway at {base} reaches no server (502){said}")
    if status == 504:
        late = ServerTimeoutError(f"{base} gave {request} up after its own deadline{said}")
        return GivenUpError(str(late)) if code == _LATE else late
    if message is None:
        return ServerAnswerError(
            f"{base} answers {request} with status {status} and {_shown(reply)}, which no server "
            "of colbert_rag does. See whether the address is that of `colbert-rag serve`"
        )
    if code in _TOO_MUCH or (status == 413 and code != "text_too_long"):
        return TooLargeError(f"{base} refuses {request} as too large{said}")
    if status == 404:
        return NotHeldError(
            f"{base} has nothing at {request.path}{said}. See whether the address is that of "
            "`colbert-rag serve`, and for an index whether it was started with --index"
        )
    return ServerError(f"{base} answers {request} with status {status}{said}")


def _code(body: object) -> str:
    """What a program tells errors apart by."""
    error = body.get("error") if isinstance(body, Mapping) else None
    return str(error.get("code")) if isinstance(error, Mapping) else ""


def broken(error: httpx2.RequestError, request: Request, base: str, timeout: float) -> Refusal:
    """What it means that a request was not answered at all."""
    library = http()
    said = f"{type(error).__name__}{f': {error}' if str(error) else ''}"
    if isinstance(error, library.ConnectError | library.ConnectTimeout | library.ProxyError):
        unreachable = ServerUnreachableError(
            f"nothing answers at {base} ({said}). See whether `colbert-rag serve` runs there, and "
            "whether host and port are right"
        )
        return Refusal(error=unreachable, cause=error, passing=True, unheard=True)
    if isinstance(error, library.DecodingError):
        unread = ServerAnswerError(f"{base} answers {request} with what cannot be read ({said})")
        return Refusal(error=unread, cause=error)
    if isinstance(error, library.UnsupportedProtocol | library.LocalProtocolError):
        return Refusal(
            error=ServerError(f"{request} cannot be sent to {base}: {said}"), cause=error
        )
    if isinstance(error, library.TimeoutException):
        late = ServerTimeoutError(
            f"{base} did not answer {request} within {timeout:g} seconds ({said}). Give it more "
            "time with timeout=, or send fewer or shorter documents"
        )
        return Refusal(error=late, cause=error)
    heard = (
        ""
        if request.repeatable
        else (
            ". Whether the server carried it out is not known: repeat the call, which leaves "
            "alone what was done already"
        )
    )
    lost = ServerUnreachableError(
        f"the connection to {base} broke during {request} ({said}){heard}"
    )
    return Refusal(error=lost, cause=error, passing=True)


def answer_of(reply: Reply, request: Request, base: str) -> Mapping[str, Any]:
    """The answer, as JSON.

    Raises:
        ServerAnswerError: it is something else.
    """
    body = _json(reply.content)
    if body is None and _has_too_many_values(reply.content):
        raise ServerAnswerError(
            f"{base} answers {request} with more than {MOST_VALUES:,} values. Ask for less at once"
        )
    if not isinstance(body, Mapping):
        raise ServerAnswerError(
            f"{base} answers {request} with {_shown(reply)}, expected a JSON object. See whether "
            "the address is that of `colbert-rag serve`"
        )
    return body


def _json(content: bytes) -> object:
    if _has_too_many_values(content):
        return None
    try:
        found: object = json.loads(content)
    except (ValueError, RecursionError):  # UnicodeDecodeError is the first, too
        return None
    return found


def _has_too_many_values(content: bytes) -> bool:
    """Whether JSON holds more values than an answer may; commas inside texts count as well."""
    return sum(map(content.count, (b",", b"[", b"{"))) > MOST_VALUES


def _shown(reply: Reply) -> str:
    beginning = " ".join(reply.content[:200].decode("utf-8", "replace").split())[:80]
    return f"{reply.kind or 'no type'} beginning {beginning!r}" if beginning else "an empty body"


def _seconds(text: str | None) -> float | None:
    """What a `Retry-After` says: seconds, or a date (RFC 9110, 10.2.3)."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
