"""Nodes as documents of an index, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator

from llama_index.core.schema import BaseNode, IndexNode, MetadataMode, TextNode

from colbert_rag.adapter.retrieving import NODE_KEY, SOURCE_KEY, as_given, check_metadata
from colbert_rag.errors import IndexCorruptError
from colbert_rag.index import Document


def to_document(node: BaseNode, metadata_mode: MetadataMode) -> Document:
    """What an index stores of a node: its text, its metadata for filters, and all of it as JSON.

    The JSON is one string, which no store can reorder or round. Left out is what LlamaIndex's own
    stores leave out: the node's embedding, the object of an `IndexNode`, the bytes of media.

    Raises:
        TypeError: `node` is not a node.
        ValueError: its metadata uses a key of ours.
    """
    if not isinstance(node, BaseNode):
        raise TypeError(f"found {type(node).__name__}, expected a node of llama_index.core.schema")
    check_metadata(node.metadata, f"node {node.node_id!r}")
    left_out = {"embedding": None, **({"obj": None} if isinstance(node, IndexNode) else {})}
    record = node.model_copy(update=left_out).model_dump(mode="json")
    stored = {"class": _name(type(node)), "node": record}
    own = {NODE_KEY: json.dumps(stored, ensure_ascii=False)}
    if node.ref_doc_id is not None:
        own[SOURCE_KEY] = node.ref_doc_id
    return Document(node.node_id, node.get_content(metadata_mode), {**node.metadata, **own})


def to_node(document: Document) -> BaseNode:
    """The node a document was made from; a `TextNode` of a document that another tool stored.

    Raises:
        IndexCorruptError: what is stored is no node.
        ValueError: the class of the node is not imported.
    """
    stored = document.metadata.get(NODE_KEY)
    if not isinstance(stored, str):
        given = as_given(document)
        return TextNode(
            id_=given.id, text=given.text, metadata=json.loads(json.dumps(given.metadata))
        )
    try:
        record = json.loads(stored)
        name, content = str(record["class"]), dict(record["node"].items())
        for kind in _kinds():
            if _name(kind) == name:
                return kind.from_dict(content)
    # Also what pydantic finds, which is a ValueError.
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise IndexCorruptError(
            f"node {document.id!r} is not what was stored ({type(error).__name__}): "
            "store it again, or restore the index from a copy"
        ) from error
    if "." not in name:
        raise IndexCorruptError(f"node {document.id!r} is not what was stored: it is a {name!r}")
    raise ValueError(
        f"node {document.id!r} is a {name}, and no such class is known here: import the "
        "module that defines it"
    )


def _name(kind: type[BaseNode]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _kinds() -> Iterator[type[BaseNode]]:
    """Every kind of node that is imported: finding one by name must not import what a file says."""
    kinds = BaseNode.__subclasses__()
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        yield kind
