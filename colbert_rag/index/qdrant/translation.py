"""qdrant-client's errors in our words: which server, what it said, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeAlias, cast

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
            except tuple(MEANINGS) as error:
                kind = next(kind for kind in type(error).__mro__ if kind in MEANINGS)
                raise MEANINGS[kind](error, self._client) from error

        return call


def translated(client: QdrantClient | TranslatedClient) -> QdrantClient:
    """The client, with every error of its package raised as an `IndexStorageError`.

    One that is translated already is returned as it is.
    """
    ours = client if isinstance(client, TranslatedClient) else TranslatedClient(client)
    return cast("QdrantClient", ours)


def _refused(error: Exception, client: QdrantClient) -> IndexStorageError:
    if getattr(error, "status_code", None) not in (401, 403):
        return _said(error, client)
    refused = client.init_options.get("api_key")
    return IndexStorageError(
        f"{_server(client)}: {'the API key was refused' if refused else 'it asks for an API key'}. "
        "Pass api_key to QdrantClient; on the command line, set QDRANT_API_KEY or name a variable "
        "with --api-key-env"
    )


def _unreachable(error: Exception, client: QdrantClient) -> IndexStorageError:
    return IndexStorageError(
        f"{_server(client)} does not answer as a Qdrant server does ({_reason(error)})"
    )


def _busy(error: Exception, client: QdrantClient) -> IndexStorageError:
    wait = getattr(error, "retry_after_s", None)
    return IndexStorageError(
        f"{_server(client)} has too much to do ({_reason(error)}): try again in {wait} seconds"
    )


def _said(error: Exception, client: QdrantClient) -> IndexStorageError:
    return IndexStorageError(f"{_server(client)}: {_reason(error)}")


_Explain: TypeAlias = Callable[[Exception, QdrantClient], IndexStorageError]

# Every exception of qdrant-client, and that of the gRPC it may use; a test finds one that is new.
MEANINGS: Mapping[type[Exception], _Explain] = {
    UnexpectedResponse: _refused,
    ResponseHandlingException: _unreachable,
    ApiException: _said,
    ResourceExhaustedResponse: _busy,
    QdrantException: _said,
    RpcError: _said,
}


def _server(client: QdrantClient) -> str:
    options = client.init_options
    given = (options.get(name) for name in ("url", "host", "location", "path"))
    return next((str(place) for place in given if place), "the Qdrant server")


def _reason(error: Exception) -> str:
    return one_line(str(error))[:_LONGEST_REASON]
