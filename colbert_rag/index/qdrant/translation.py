"""qdrant-client's errors in our words: which server, what it said, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

from grpc import RpcError
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import (
    ApiException,
    ResponseHandlingException,
    UnexpectedResponse,
)

from colbert_rag.display import one_line
from colbert_rag.errors import IndexStorageError

_LONGEST_REASON = 200

# Every exception of qdrant-client, and that of the gRPC it may use; a test finds one that is new.
TRANSLATED = (
    UnexpectedResponse,
    ResponseHandlingException,
    ApiException,
    ResourceExhaustedResponse,
    QdrantException,
    RpcError,
)


class TranslatedClient:
    """A client whose calls raise our errors; everything else is the client's own.

    The calls are wrapped here, and not where they are made, so that none can be forgotten.
    """

    def __init__(self, client: QdrantClient) -> None:
        """Pass calls on to `client`."""
        self._client = client

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever the client has
        """An attribute of the client; a method comes with its errors translated."""
        if name == "_client":  # not made yet, as while a copy is: looking on would never end
            raise AttributeError(name)
        found = getattr(self._client, name)
        return self._translated(found) if callable(found) else found

    def _translated(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*arguments: object, **options: object) -> object:
            try:
                return method(*arguments, **options)
            except TRANSLATED as error:
                raise _in_words(error, self._client) from error

        return call


def translated(client: QdrantClient | TranslatedClient) -> QdrantClient:
    """The client, with every error of its package raised as an `IndexStorageError`.

    One that is translated already is returned as it is.
    """
    ours = client if isinstance(client, TranslatedClient) else TranslatedClient(client)
    return cast("QdrantClient", ours)


def _in_words(error: Exception, client: QdrantClient) -> IndexStorageError:
    options = client.init_options
    places = (options.get(name) for name in ("url", "host", "location", "path"))
    server = next((str(place) for place in places if place), "the Qdrant server")
    reason = one_line(str(error))[:_LONGEST_REASON]
    if isinstance(error, ResponseHandlingException):
        return IndexStorageError(f"{server} does not answer as a Qdrant server does ({reason})")
    if isinstance(error, ResourceExhaustedResponse):
        wait = error.retry_after_s
        return IndexStorageError(
            f"{server} has too much to do ({reason}): try again in {wait} seconds"
        )
    if getattr(error, "status_code", None) in (401, 403):
        denied = "the API key was refused" if options.get("api_key") else "it asks for an API key"
        return IndexStorageError(
            f"{server}: {denied}. Pass api_key to QdrantClient; on the command line, set "
            "QDRANT_API_KEY or name a variable with --api-key-env"
        )
    return IndexStorageError(f"{server}: {reason}")
