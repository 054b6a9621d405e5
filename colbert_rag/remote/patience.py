"""How long and how often a request is tried."""

from __future__ import annotations

import random
import time

from colbert_rag.errors import ServerError, ServerTimeoutError
from colbert_rag.remote.replies import Refusal, Request

_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 8.0


class Patience:
    """The tries of one request.

    A request that may be repeated is, where the server was not there, had too much to do, or the
    connection broke. One that changes something is repeated only where it cannot have been heard.
    """

    def __init__(self, base: str, request: Request, *, timeout: float, retries: int) -> None:
        """Begin to wait."""
        self._base = base
        self._request = request
        self._timeout = timeout
        self._tries = retries
        self._pause = _FIRST_PAUSE
        self._end = time.monotonic() + timeout

    def left(self) -> float:
        """Seconds that are left.

        Raises:
            ServerTimeoutError: none are.
        """
        self.check()
        return self._end - time.monotonic()

    def check(self) -> None:
        """See that there is time left.

        Raises:
            ServerTimeoutError: there is none.
        """
        if time.monotonic() >= self._end:
            raise ServerTimeoutError(self.too_late())

    def too_late(self) -> str:
        """What to say when the time is up."""
        return (
            f"{self._base} did not answer {self._request} within {self._timeout:g} seconds. "
            "Give it more time with timeout=, or send fewer or shorter documents"
        )

    def after(self, refusal: Refusal) -> float:
        """Seconds to pause before the next try.

        A part of it is chance, so that clients that were refused together come back one by one.

        Raises:
            ServerError: there is no next try.
        """
        again = refusal.unheard or (refusal.passing and self._request.repeatable)
        pause = (refusal.retry_after or 0.0) + self._pause * random.uniform(0.5, 1.0)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if not again or not self._tries or time.monotonic() + pause >= self._end:
            error: ServerError | Exception = refusal.error
            raise error from refusal.cause
        self._tries -= 1
        return pause
