"""Lines of files as text; what is no text is told what it is, and what to do."""

from __future__ import annotations

import re

from colbert_rag.errors import ReadingError

EXTRACT = "Extract its text first, with a program for such files"
KINDS = {
    b"%PDF-": ("a PDF file", "Extract its text first, as with: pdftotext FILE"),
    b"PK\3\4": ("an archive, as .docx, .xlsx, .epub and .zip files are", EXTRACT),
    b"\xd0\xcf\x11\xe0": ("an old Office file", EXTRACT),
    b"{\\rtf": ("an RTF file", EXTRACT),
    b"\x1f\x8b": ("compressed", "Unpack it first, as with: gunzip FILE"),
    b"\x28\xb5\x2f\xfd": ("compressed", "Unpack it first, as with: unzstd FILE"),
    b"SQLite format 3\0": ("a database", "If it is an index: colbert-rag search QUERY FILE"),
    b"\x89PNG": ("a picture", "Texts alone are ranked"),
    b"\xff\xd8\xff": ("a picture", "Texts alone are ranked"),
    b"\x7fELF": ("a program", "Texts alone are ranked"),
}
"""How files begin that are often taken for text: what they are, and what to do."""

CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
"""Bytes that stand in no text, whatever its encoding; an escape may, before a colour."""


def decoded(line: bytes, source: str, number: int) -> str:
    """A line of a UTF-8 file as text, without a byte order mark in front of the first.

    Args:
        line: Its bytes.
        source: The file, for a message.
        number: Which line it is, counted from 1.

    Raises:
        ReadingError: it is no text, or in another encoding.
    """
    if number == 1:
        _refuse_other_kinds(source, line)
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        encoding = likely_encoding(line)
        if encoding != "UTF-16" and (control := CONTROLS.search(line)):
            raise _binary(f"{source}:{number}", control[0][0]) from error
        raise ReadingError(
            f"{source}:{number}: not UTF-8 at byte {error.start + 1} of the line. "
            f"Convert it first, as with: iconv -f {encoding} -t UTF-8"
        ) from error
    if "\0" in text:
        raise _binary(f"{source}:{number}", 0)
    return text


def likely_encoding(content: bytes) -> str:
    """What text that is not UTF-8 is probably encoded in, as iconv calls it."""
    return "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"


def _binary(place: str, byte: int) -> ReadingError:
    found = f"the byte {byte:#04x}" if byte else "a zero byte"
    return ReadingError(f"{place}: not a text file: it holds {found}. {EXTRACT}")


def _refuse_other_kinds(source: str, start: bytes) -> None:
    """Say of a file that is no text what it is, and not that its encoding is wrong."""
    for magic, (kind, advice) in KINDS.items():
        if start.startswith(magic):
            raise ReadingError(f"{source} is {kind}, expected text. {advice}")
