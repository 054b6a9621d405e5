"""Reads the JSON files of a checkpoint, which may be hostile: limits on size, types and paths."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

from colbert_rag.errors import MetadataError, UnsafePathError

MAX_JSON_BYTES = 8 * 2**20
"""No configuration file of a checkpoint is near this size; tokenizers are read elsewhere."""

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

    def has(self, name: str) -> bool:
        """Whether the file exists."""
        return (self.path / name).is_file()

    def read(self, name: str) -> Section:
        """The JSON object in a file; an absent file is an empty object.

        Raises:
            MetadataError: the file is too large, is not JSON, or is not an object.
        """
        if name not in self._cache:
            value = self._load(name) if self.has(name) else {}
            if not isinstance(value, dict):
                raise MetadataError(f"{name} holds a {type(value).__name__}, expected an object")
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
        file = self.path / name
        size = file.stat().st_size
        if size > MAX_JSON_BYTES:
            raise MetadataError(
                f"{name} has {size:,} bytes; a checkpoint's JSON is refused above "
                f"{MAX_JSON_BYTES:,} bytes"
            )
        try:
            return json.loads(file.read_text(encoding="utf-8"))
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


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
