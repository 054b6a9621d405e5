"""Where the codebook of a collection lies: in a collection of its own beside it.

Not in the metadata, which every look at a collection transfers and every node of a cluster keeps in
its log: a codebook has megabytes. Not among the documents either, where each count and each reader,
also older ones and other people's, would have to know what is no document.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from qdrant_client import QdrantClient, models

from colbert_rag.index.choice import Choice
from colbert_rag.index.qdrant.codebook import Codebook, digest_of
from colbert_rag.index.qdrant.collection import payload_of

BESIDE = "-codebook"
"""Behind the name of the collection."""

_RECORD, _CHOICE = "colbert_rag_codes", "colbert_rag_effort"

# A server refuses requests above 32 MiB; in base 64, bytes take a third more.
_CHUNK = 8 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class CodesRecord:
    """What the metadata of a collection says of its codebook.

    Attributes:
        base: Which codebook it is.
        digest: Of its bytes.
        documents: How many there were when it was trained.
        distance: Of a token from its centroid, on average, then.
        retired: The codebooks before it.
    """

    base: int
    digest: str
    documents: int
    distance: float
    retired: Sequence[int] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Current:
    """What searches and writers need.

    Attributes:
        codebook: The one to use.
        record: What the metadata say of it.
        effort: What was chosen, else the default.
    """

    codebook: Codebook
    record: CodesRecord
    effort: int


class Shelf:
    """Keeps codebooks of one collection."""

    def __init__(self, client: QdrantClient, collection: str) -> None:
        """Nothing is read yet."""
        self._client, self._collection = client, collection
        self._beside = collection + BESIDE
        self._loaded: Codebook | None = None

    def record(self) -> CodesRecord | None:
        """Which codebook the collection has."""
        return _record_in(self._metadata())

    def choose(self, choice: Choice) -> None:
        """Record an effort."""
        self._client.update_collection(self._collection, metadata={_CHOICE: asdict(choice)})

    def current(self) -> Current | None:
        """The codebook of the collection; None if there is none, or it is lost."""
        metadata = self._metadata()
        record = _record_in(metadata)
        codebook = None if record is None else self.load(record)
        if record is None or codebook is None:
            return None
        return Current(codebook, record, Choice.recorded(metadata.get(_CHOICE)).effort)

    def load(self, record: CodesRecord) -> Codebook | None:
        """The codebook of a record; None if it is lost or damaged."""
        loaded = self._loaded
        if loaded is not None and loaded.base == record.base:
            return loaded
        if not self._client.collection_exists(self._beside):
            return None
        data = b"".join(self._parts(record.base))
        if digest_of(data) != record.digest:
            return None
        self._loaded = Codebook.from_bytes(record.base, data)
        return self._loaded

    def _parts(self, base: int) -> Iterator[bytes]:
        """The parts of a codebook, one request for each."""
        part = 0
        while found := self._client.retrieve(self._beside, [_part_id(base, part)]):
            yield base64.b64decode(payload_of(found[0])["data"])
            part += 1

    def put(self, codebook: Codebook) -> str:
        """Keep a codebook beside others, and return its digest."""
        if not self._client.collection_exists(self._beside):
            self._client.create_collection(self._beside, vectors_config={})
        data = codebook.to_bytes()
        for part, start in enumerate(range(0, len(data), _CHUNK)):
            text = base64.b64encode(data[start : start + _CHUNK]).decode()
            payload = {"base": codebook.base, "data": text}
            point = models.PointStruct(id=_part_id(codebook.base, part), vector={}, payload=payload)
            self._client.upsert(self._beside, [point], wait=True)
        return digest_of(data)

    def publish(self, codebook: Codebook, record: CodesRecord) -> None:
        """Say that a codebook is the one to use."""
        if self.load(record) is None:  # another who trained at the same time threw it away
            self.put(codebook)
        self._client.update_collection(self._collection, metadata={_RECORD: asdict(record)})

    def tidy(self) -> None:
        """Throw all codebooks away but the one in use."""
        record = self.record()
        if record is None:
            return
        others = models.Filter(must_not=[_of(record.base)])
        self._client.delete(self._beside, models.FilterSelector(filter=others), wait=True)

    def _metadata(self) -> models.Payload:
        return self._client.get_collection(self._collection).config.metadata or {}


def _part_id(base: int, part: int) -> int:
    return (base << 16) + part


def _of(base: int) -> models.FieldCondition:
    return models.FieldCondition(key="base", match=models.MatchValue(value=base))


def _record_in(metadata: models.Payload) -> CodesRecord | None:
    """What the metadata say; what somebody else wrote there is none."""
    try:
        return CodesRecord(**metadata[_RECORD])
    except (KeyError, TypeError):
        return None
