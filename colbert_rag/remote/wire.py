"""What travels between a client and a server: paths, errors, and vectors as text.

Imported by both sides, and by clients that have no torch: nothing here imports it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

RERANK = ("/rerank", "/v1/rerank", "/v2/rerank")
SCORE = "/v1/score"
POOLING = "/pooling"
MODELS = "/v1/models"
SEARCH = "/v1/search"
DOCUMENTS = "/v1/documents"
INDEX = "/v1/index"
HEALTH = "/health"
READY = "/ready"
METRICS = "/metrics"

FLOAT = np.dtype("<f4")
"""How vectors travel in base64: little-endian float32, row after row, as vLLM sends them."""


def pack_rows(rows: NDArray[np.float32]) -> str:
    """Vectors, `(rows, dim)`, as base64."""
    return base64.b64encode(np.ascontiguousarray(rows, dtype=FLOAT).tobytes()).decode("ascii")


def unpack_rows(text: str, dim: int) -> NDArray[np.float32]:
    """Vectors from base64, `(rows, dim)`, as an array of their own that may be written to.

    Raises:
        ValueError: it is not base64, or not a whole number of rows.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the vectors are not base64: {error}") from error
    if dim < 1 or len(raw) % (dim * FLOAT.itemsize):
        raise ValueError(
            f"found {len(raw)} bytes of vectors, expected rows of {dim} numbers of "
            f"{FLOAT.itemsize} bytes"
        )
    return np.frombuffer(raw, dtype=FLOAT).astype(np.float32).reshape(-1, dim)


def error_body(
    message: str, *, kind: str, code: str, param: str | None = None
) -> dict[str, object]:
    """An error as clients of OpenAI's, Cohere's and FastAPI's shapes read it.

    Args:
        message: What was found, what was expected, and what to do.
        kind: The family of errors, such as "invalid_request_error".
        code: What a program tells errors apart by, such as "queue_full".
        param: The field of the request that is wrong.
    """
    error = {"message": message, "type": kind, "code": code, "param": param}
    return {"error": error, "message": message, "detail": message}


def error_message(body: object) -> str | None:
    """The message in the body of an error of any of the three shapes; None where there is none."""
    if not isinstance(body, Mapping):
        return None
    inner = body.get("error")
    found = inner.get("message") if isinstance(inner, Mapping) else inner
    for candidate in (found, body.get("message"), body.get("detail")):
        if isinstance(candidate, str) and candidate:
            return candidate
    return None
