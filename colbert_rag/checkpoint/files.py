"""Reads the files of a checkpoint, which may be hostile: limits on kind, size, types and paths."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import TypeVar

from colbert_rag.errors import MetadataError, UnsafePathError
from colbert_rag.wording import kind_of

MAX_JSON_BYTES = 4 * 2**20
"""No configuration file of a checkpoint is near this size; tokenizers have limits of their own."""

MAX_CONTAINERS = 100_000
"""Each list or object takes 30 times the memory and the time of its text; Gemma's tokenizer has the
most of any that is published, 6,400."""

# Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
_READING = os.O_RDONLY | sum(
    getattr(os, flag, 0) for flag in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY")
)

State = tuple[int, int, int]
"""By inode, size and time of the last change a file is told from what it was."""

JsonObject = dict[str, object]
Kind = TypeVar("Kind", str, int, bool, dict[str, object], list[object])


@dataclass(frozen=True, slots=True)
class Section:
    """One JSON object of a checkpoint, whose values are read with the type they must have.

    Attributes:
        file: The file it comes from, for messages.
        values: The object.
        ignored: Keys that count as absent, because the caller has chosen their values.
    """

    file: str
    values: JsonObject
    ignored: frozenset[str] = frozenset()

    def __contains__(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(key) is not None

    def get(self, key: str, kind: type[Kind]) -> Kind | None:
        """The value of `key`, or None where it is absent or null.

        Raises:
            MetadataError: the value has another type.
        """
        value = None if key in self.ignored else self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise MetadataError(
                f"{self.file}: {key} is {_shorten(value)} ({type(value).__name__}), "
                f"expected {kind.__name__}. Correct the file, or override the value when opening "
                "the checkpoint"
            )
        return value

    def length(self, key: str, default: int) -> int:
        """A number of tokens, or the default where the key is absent or null.

        Raises:
            MetadataError: the value is not a positive whole number.
        """
        value = self.get(key, int)
        if value is not None and value < 1:
            raise MetadataError(f"{self.file}: {key} is {value}, expected at least 1")
        return default if value is None else value

    def words(self, key: str) -> tuple[str, ...] | None:
        """A list of strings, or None where the key is absent or null.

        Raises:
            MetadataError: the value is not a list of strings.
        """
        words = self.get(key, list)
        if words is None:
            return None
        if not all(isinstance(word, str) for word in words):
            raise MetadataError(f"{self.file}: {key} holds {_shorten(words)}, expected strings")
        return tuple(str(word) for word in words)

    def section(self, key: str) -> Section:
        """A nested object, empty where the key is absent or null."""
        return Section(f"{self.file}: {key}", self.get(key, dict) or {}, self.ignored)


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of one checkpoint, addressed by names relative to its folder.

    Attributes:
        path: The folder.
        ignored: Keys that count as absent in every file.
    """

    path: Path
    ignored: frozenset[str] = frozenset()
    _cache: dict[str, Section] = field(default_factory=dict, repr=False, compare=False)
    _seen: dict[str, State | None] = field(default_factory=dict, repr=False, compare=False)

    def has(self, name: str) -> bool:
        """Whether the file exists; what is no regular file counts as absent."""
        try:
            found = (self.path / name).is_file()
        except (OSError, ValueError):  # a name that no file can have
            found = False
        if not found:
            self._seen.setdefault(name)
        return found

    @property
    def unchanged(self) -> bool:
        """Whether every file is as it was when it was read or looked for, by its state."""
        return all(self._state(name) == state for name, state in self._seen.items())

    def _state(self, name: str) -> State | None:
        try:
            return _state((self.path / name).stat())
        except (OSError, ValueError):
            return None

    @contextmanager
    def open(self, name: str) -> Iterator[BufferedReader]:
        """Open a regular file; a pipe or a device is never read.

        Raises:
            MetadataError: it is something else.
        """
        with os.fdopen(os.open(self.path / name, _READING), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise MetadataError(f"{name} is no regular file, so it is not read")
            # The first look counts: what was read later must still belong to it.
            self._seen.setdefault(name, _state(found))
            yield file

    def read_bytes(self, name: str, limit: int) -> bytes:
        """All of a file.

        Raises:
            MetadataError: it is above the limit, or not as long as it says.
        """
        with self.open(name) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise MetadataError(
                    f"{name} has {size:,} bytes, expected {limit:,} at most. Is this the file that "
                    "was published?"
                )
            data = file.read(size + 1)  # files of /proc say that they are empty, and are not
        if len(data) != size:
            raise MetadataError(
                f"{name} should have {size:,} bytes, and gave "
                f"{'more' if len(data) > size else f'{len(data):,}'}. Open it again when nobody "
                "writes to it"
            )
        return data

    def read_text(self, name: str, limit: int) -> str:
        """All of a file, as UTF-8.

        Raises:
            MetadataError: as `read_bytes`, or it is no UTF-8.
        """
        try:
            return self.read_bytes(name, limit).decode("utf-8")
        except UnicodeDecodeError as error:
            raise MetadataError(f"{name} is not UTF-8: {error}") from error

    def read(self, name: str) -> Section:
        """The JSON object in a file; an absent file is an empty object.

        Raises:
            MetadataError: the file is too large, is not JSON, or is not an object.
        """
        if name not in self._cache:
            value = self._load(name) if self.has(name) else {}
            if not isinstance(value, dict):
                raise MetadataError(f"{name} holds {kind_of(value)}, expected an object")
            self._cache[name] = Section(name, value, self.ignored)
        return self._cache[name]

    def read_list(self, name: str) -> list[Section]:
        """The JSON objects of a list in a file; an absent file is an empty list.

        Raises:
            MetadataError: the file is too large, is not JSON, or is not a list of objects.
        """
        value = self._load(name) if self.has(name) else []
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise MetadataError(f"{name} is not a list of objects")
        return [Section(name, entry, self.ignored) for entry in value]

    def _load(self, name: str) -> object:
        text = self.read_text(name, MAX_JSON_BYTES)
        if (nested := text.count("[") + text.count("{")) > MAX_CONTAINERS:
            raise MetadataError(
                f"{name} holds {nested:,} lists and objects, expected {MAX_CONTAINERS:,} at most"
            )
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MetadataError(f"{name} is not valid JSON: {error}") from error

    def inside(self, relative: str, *, named_in: str) -> str:
        """Check a path written in a checkpoint file, and return it in normal form.

        A hub cache keeps files as links into its blob store, so a file's own target may lie
        outside; what must stay inside is every folder on the way.

        Raises:
            UnsafePathError: the path is absolute, climbs out, or passes a link that leaves.
        """
        parts = PurePosixPath(relative).parts
        unsafe = (
            relative.startswith("/")
            or ".." in parts
            or any(mark in relative for mark in ("\\", "\0", ":"))
        )
        if not unsafe:
            target = self.path.joinpath(*parts)
            folder = target if target.is_dir() else target.parent
            unsafe = folder.exists() and not folder.resolve().is_relative_to(self.path.resolve())
        if unsafe:
            raise UnsafePathError(
                f"{named_in} names the path {relative!r}, which leads out of the checkpoint "
                f"{self.path}. Paths in a checkpoint must stay inside its folder"
            )
        return str(PurePosixPath(*parts)) if parts else ""


def join(folder: str, name: str) -> str:
    """A file name inside a sub-folder, where the empty string is the checkpoint itself."""
    return f"{folder}/{name}" if folder else name


def _state(found: os.stat_result) -> State:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
