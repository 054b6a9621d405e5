"""One model, and perhaps one index, for every program that speaks HTTP."""

from colbert_rag.errors import MissingExtraError

try:
    import fastapi  # noqa: F401  # asked for here, once for all modules below
    import prometheus_client  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise MissingExtraError(error.name or "fastapi", extra="server") from error
