"""Documents from files: JSON Lines, CSV, plain text and Markdown, read as a stream.

Only the standard library is used, and one document is held at a time, so that a file may be larger
than memory. What cannot be read is an error that names file and line; nothing is passed over but
blank lines.
"""

from colbert_rag.cli.reading.document import ReadingOptions, SourceDocument
from colbert_rag.cli.reading.files import LARGEST, READERS, STDIN, SUFFIXES, read_documents
from colbert_rag.cli.reading.prose import SPLITS
from colbert_rag.errors import ReadingError

__all__ = [
    "LARGEST",
    "READERS",
    "SPLITS",
    "STDIN",
    "SUFFIXES",
    "ReadingError",
    "ReadingOptions",
    "SourceDocument",
    "read_documents",
]
