"""The body of a reply as it comes in: as large as it may be, and no larger."""

from __future__ import annotations

from collections.abc import Mapping

from colbert_rag.errors import ServerAnswerError
from colbert_rag.remote.replies import Request


class Incoming:
    """A body, part by part.

    Whoever answers decides how much comes, and could go on for as long as the time limit.
    """

    def __init__(self, request: Request, base: str, headers: Mapping[str, str]) -> None:
        """Begin to read what `base` answers to `request`.

        Raises:
            ServerAnswerError: it is compressed, which nobody asked for.
        """
        self._request, self._base = request, base
        self._content = bytearray()
        coding = headers.get("content-encoding", "").strip().lower()
        if coding not in ("", "identity"):
            raise ServerAnswerError(
                f"{base} answers {request} with a body that cannot be read: its coding is "
                f"{coding[:40]!r}, and none was asked for"
            )

    def take(self, part: bytes) -> None:
        """Add what has come.

        Raises:
            ServerAnswerError: that is more than the request may be answered with.
        """
        self._content += part
        if len(self._content) > self._request.most:
            raise ServerAnswerError(
                f"{self._base} answers {self._request} with more than "
                f"{self._request.most:,} bytes. Ask for less at once"
            )

    @property
    def content(self) -> bytes:
        """All that came."""
        return bytes(self._content)
