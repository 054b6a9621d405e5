"""Where a server is, and the key it wants."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

from colbert_rag.inputs import is_address

API_KEY = "COLBERT_RAG_API_KEY"
"""Environment variable with the key of servers, where none is given."""


def base_of(address: str) -> str:
    """The address below which all paths of a server lie.

    A final slash does not count, nor does the `/v1` that clients of other servers want.

    Raises:
        TypeError: it is no text.
        ValueError: it is no address of a server, or carries more than one.
    """
    if not isinstance(address, str):
        raise TypeError(f"the address of a server is {address!r}, expected text")
    # `urlsplit` leaves newlines out without a word.
    if not is_address(address) or any(it.isspace() or not it.isprintable() for it in address):
        raise ValueError(f"address is {address!r}, expected one such as 'http://127.0.0.1:8000'")
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"address is {address!r}, which cannot be read: {error}") from error
    if "@" in parts.netloc:  # not shown, since it is a secret
        raise ValueError(
            "the address of the server holds a user name or password: leave it out, and give a key "
            f"as api_key or in the environment variable {API_KEY}"
        )
    if not parts.hostname or parts.query or parts.fragment:
        raise ValueError(
            f"address is {address!r}, expected a host and perhaps a port and a path, such as "
            "'http://127.0.0.1:8000'"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    place = host if port is None else f"{host}:{port}"
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme.lower()}://{place}{path}"


def origin_of(base: str) -> str:
    """Scheme, host and port: what a connection is made to."""
    parts = urlsplit(base)
    return f"{parts.scheme}://{parts.netloc}"


def is_loopback(base: str) -> bool:
    """Whether the server is on this machine, where no proxy of the environment can reach it."""
    host = urlsplit(base).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def key_for(given: str | None) -> str | None:
    """The key to send: the given one, else the first of the environment, else none.

    A server reads several from the same variable, with commas between them.

    Looked up for each request, so that a key that is changed there counts from then on.

    Raises:
        TypeError: it is no text; it is not shown.
        ValueError: no header can carry it; nor is it then.
    """
    if given is not None and not isinstance(given, str):
        raise TypeError(f"api_key is of type {type(given).__name__}, expected text or None")
    if given is None:
        several = os.environ.get(API_KEY, "").split(",")
        name, key = API_KEY, next(filter(None, map(str.strip, several)), "")
    else:
        name, key = "api_key", given.strip()  # a key that was read from a file ends with its line
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"{name} holds characters that no key has, expected printable ASCII")
    return key or None
