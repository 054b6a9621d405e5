"""One request and its answer, whatever it takes: tries, pauses, a deadline, clear errors.

What to ask is a plan: a generator that yields requests and is sent their answers, so that the same
steps serve those who wait and those who await.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from colbert_rag.errors import ServerError, ServerTimeoutError
from colbert_rag.remote.address import base_of, key_for, origin_of
from colbert_rag.remote.connections import async_client_of, client_of, http
from colbert_rag.remote.incoming import Incoming
from colbert_rag.remote.patience import Patience
from colbert_rag.remote.replies import Reply, Request, answer_of, broken
from colbert_rag.settings import whole_number

if TYPE_CHECKING:
    import httpx2

Result = TypeVar("Result")

Answer: TypeAlias = Mapping[str, Any]
"""What a server answered, as JSON."""

Plan: TypeAlias = Generator[Request, Answer, Result]
"""Steps that yield requests, and end with a result."""

TIMEOUT = 60.0
"""Seconds that a request may take, with all its tries."""

RETRIES = 4
"""Tries after the first."""

_CONNECT = 10.0
"""Seconds for a connection: a machine that is not there does not answer at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server, and how to ask it. It holds no connection: those are the process's.

    Attributes:
        base: Its address.
        api_key: The key it was given here; None for that of the environment.
        timeout: Seconds that a request may take, with all its tries.
        retries: Tries after the first.
    """

    base: str
    api_key: str | None = field(default=None, repr=False)
    timeout: float
    retries: int

    def __post_init__(self) -> None:
        """Read the address as `base_of` does.

        Raises:
            TypeError: one is of another type.
            ValueError: it is none, a key cannot be sent, or a number is out of range.
        """
        object.__setattr__(self, "base", base_of(self.base))
        library = http()
        try:
            library.URL(self.base)
        except library.InvalidURL as error:
            raise ValueError(f"address is {self.base!r}, which cannot be asked: {error}") from error
        key_for(self.api_key)
        given: object = self.timeout
        if not isinstance(given, Real):
            raise TypeError(f"timeout is {given!r}, expected seconds, such as 60.0")
        if isinstance(self.timeout, bool) or not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout is {self.timeout!r}, expected seconds, such as 60.0")
        object.__setattr__(self, "retries", whole_number("retries", self.retries, least=0))

    def run(self, plan: Plan[Result]) -> Result:
        """Carry a plan out, waiting for each answer."""
        try:
            request = next(plan)
            while True:
                try:
                    answer = self.send(request)
                except ServerError as error:
                    request = plan.throw(error)
                else:
                    request = plan.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result

    async def arun(self, plan: Plan[Result]) -> Result:
        """The same, awaiting each answer."""
        try:
            request = next(plan)
            while True:
                try:
                    answer = await self.asend(request)
                except ServerError as error:
                    request = plan.throw(error)
                else:
                    request = plan.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result

    def send(self, request: Request) -> Answer:
        """Ask once, or as often as it takes.

        Raises:
            ServerError: there is no answer to work with; its subclass says why.
        """
        patience = Patience(self.base, request, timeout=self.timeout, retries=self.retries)
        while True:
            try:
                reply = self._try(request, patience)
            except http().RequestError as error:
                pause = patience.after(broken(error, request, self.base, self.timeout))
            else:
                if (refusal := reply.refusal(request, self.base, self._key())) is None:
                    return answer_of(reply, request, self.base)
                pause = patience.after(refusal)
            time.sleep(pause)

    async def asend(self, request: Request) -> Answer:
        """`send`, without holding up the event loop."""
        patience = Patience(self.base, request, timeout=self.timeout, retries=self.retries)
        while True:
            try:
                reply = await self._atry(request, patience)
            except http().RequestError as error:
                pause = patience.after(broken(error, request, self.base, self.timeout))
            else:
                if (refusal := reply.refusal(request, self.base, self._key())) is None:
                    return answer_of(reply, request, self.base)
                pause = patience.after(refusal)
            await asyncio.sleep(pause)

    def _try(self, request: Request, patience: Patience) -> Reply:
        client = client_of(origin_of(self.base))
        with client.stream(**self._sent(request, patience)) as response:
            body = Incoming(request, self.base, response.headers)
            for part in response.iter_raw():
                body.take(part)
                patience.check()  # a time limit of the library is one for each part
        return Reply.of(response.status_code, response.headers, body.content)

    async def _atry(self, request: Request, patience: Patience) -> Reply:
        client = async_client_of(origin_of(self.base))
        try:
            async with (
                asyncio.timeout(patience.left()),
                client.stream(**self._sent(request, patience)) as response,
            ):
                body = Incoming(request, self.base, response.headers)
                async for part in response.aiter_raw():
                    body.take(part)
        except TimeoutError:
            raise ServerTimeoutError(patience.too_late()) from None
        return Reply.of(response.status_code, response.headers, body.content)

    def _sent(self, request: Request, patience: Patience) -> dict[str, Any]:
        key, left, content = self._key(), patience.left(), request.content
        # A few compressed bytes can stand for any number: none are asked for.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if content is not None:
            headers["Content-Type"] = "application/json"
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        limits: httpx2.Timeout = http().Timeout(left, connect=min(left, _CONNECT))
        return {
            "method": request.method,
            "url": self.base + request.path,
            "content": content,
            "headers": headers,
            "timeout": limits,
        }

    def _key(self) -> str | None:
        return key_for(self.api_key)
