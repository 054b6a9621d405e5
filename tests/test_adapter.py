"""The fields that name a model, and the one model behind them."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import colbert_rag.text_encoder
from colbert_rag import ColBERT, clear_cache, shared_colbert
from colbert_rag.adapter import Reranking, Retrieving, SharedModel
from colbert_rag.explanation import Explanation
from colbert_rag.index import LocalIndex
from colbert_rag.langchain import ColBERTRerank as LangChainRerank
from colbert_rag.langchain import ColBERTRetriever as LangChainRetriever
from colbert_rag.llama_index import ColBERTRerank as LlamaIndexRerank
from colbert_rag.model import Model, Ranker
from colbert_rag.settings import Settings
from colbert_rag.text_encoder import TextEncoder
from tests.helpers.rerankers import LengthRanker, WordModel

EXACT = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(autouse=True)
def forget_shared_models() -> Iterator[None]:
    yield
    clear_cache()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folder of each checkpoint whose weights are read while the test runs."""
    folders: list[str] = []
    host = colbert_rag.text_encoder.host

    def counting(checkpoint, **options):
        folders.append(str(checkpoint.folder))
        return host(checkpoint, **options)

    monkeypatch.setattr(colbert_rag.text_encoder, "host", counting)
    return folders


def test_every_option_of_a_model_but_the_secret_one_is_a_field() -> None:
    options = {*Settings.__slots__} - {"checkpoint", "token"}

    assert {*SharedModel.model_fields} == options | {"model", "colbert"}


def test_every_public_field_is_described() -> None:
    properties = Reranking.model_json_schema()["properties"]

    assert [name for name, schema in properties.items() if not schema.get("description")] == []
    assert "colbert" not in properties


def test_constructing_a_component_loads_nothing(loads: list[str], tiny_checkpoint: Path) -> None:
    SharedModel(model=tiny_checkpoint)

    assert loads == []


def test_a_path_becomes_text() -> None:
    component = SharedModel(model=Path("models/x"), cache_folder=Path("cache"))

    assert component.model == os.path.join("models", "x")  # noqa: PTH118
    assert component.cache_folder == "cache"


@pytest.mark.parametrize(
    ("option", "value", "advice"),
    [
        pytest.param("dtype", "float8", "expected one of auto, float32", id="unknown dtype"),
        pytest.param("query_length", 1, "expected at least 4", id="no room for a query"),
        pytest.param("batch_tokens", 0, "expected at least 1", id="empty batches"),
        pytest.param("colbert", "a name", "instance of Ranker", id="not a model"),
    ],
)
def test_an_impossible_option_is_refused_at_once(option: str, value: object, advice: str) -> None:
    with pytest.raises(ValidationError, match=advice):
        SharedModel(**{option: value})


def test_an_impossible_value_is_refused_later_too() -> None:
    component = Reranking()

    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        component.top_n = 0

    assert component.top_n == 3


REFUSED = {
    "query_length": 1,
    "document_length": 2.5,
    "batch_tokens": 0,
    "document_cache": -1,
    "dtype": "float8",
    "model": " ",
    "colbert": "a name",
    "top_n": 0,
    "score_threshold": math.nan,
    "score": "best",
    "index": 3,
    "unknown": 1,
}
"""Values that fields refuse: some by their type, some as a whole, since no model can be so."""


@pytest.mark.parametrize(
    "kind", [LangChainRerank, LlamaIndexRerank, LangChainRetriever, Retrieving]
)
def test_a_refused_assignment_leaves_everything_as_it_was(
    kind: type[SharedModel], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    exact = {"model": str(tiny_checkpoint), **EXACT, "query_length": 20}
    index = tmp_path / "x.sqlite"
    with LocalIndex(index, shared_colbert(tiny_checkpoint, **EXACT, query_length=20)):
        component = kind(index=index, **exact)
    before, chosen = component.model_dump(), component.model_fields_set.copy()
    refused = {**REFUSED, **dict.fromkeys(type(component).model_fields, object())}
    if issubclass(kind, Retrieving):
        refused["index"] = None

    refusals = 0
    for name, value in (*REFUSED.items(), *refused.items()):
        try:
            setattr(component, name, value)
        except (ValidationError, TypeError, ValueError):
            refusals += 1
            assert component.model_dump() == before, name
            assert component.model_fields_set == chosen, name
        else:  # a field of the framework that takes anything
            assert name not in SharedModel.model_fields
            component = kind(index=index, **exact)

    assert refusals > 30
    component.query_length = 8
    assert component.query_length == 8
    assert component.model_dump() == {**before, "query_length": 8}


def test_the_given_encoder_is_the_one_used(tiny_colbert: ColBERT) -> None:
    assert SharedModel(colbert=tiny_colbert).ranker is tiny_colbert


def test_anything_that_ranks_will_do_as_an_encoder() -> None:
    ranker = LengthRanker()

    component = SharedModel(colbert=ranker)
    component.load()
    component.unload()

    assert isinstance(ranker, Ranker)
    assert component.ranker is ranker


def test_a_model_that_is_no_colbert_will_do_as_one() -> None:
    model = WordModel(query_length=16)

    component = SharedModel(colbert=model)
    component.load()
    component.unload()

    assert isinstance(model, Model)
    assert component.ranker is model
    assert (component.model, component.query_length) == ("tests/words", 16)
    with pytest.raises(ValidationError, match=r"query_length is 32, .* leave one of the two out"):
        SharedModel(colbert=model, query_length=32)


def test_a_model_on_a_device_that_is_not_here_is_taken() -> None:
    assert SharedModel(colbert=WordModel(device="cuda:7")).device == "cuda:7"


def test_taking_a_model_reads_none_of_its_weights(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colbert = ColBERT.from_pretrained(tiny_checkpoint, **EXACT)
    monkeypatch.setattr(ColBERT, "fingerprint", property(lambda self: pytest.fail("it was read")))

    Reranking(colbert=colbert)._rerank("mars", ["venus"], [None])


def test_a_query_to_a_loaded_model_looks_at_no_file(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_checkpoint.parent)
    reranker = Reranking(model=tiny_checkpoint.name, **EXACT)
    reranker._rerank("mars", ["venus"], [None])
    seen = note_file_accesses(monkeypatch)

    reranker._rerank("red planet", ["saturn"], [None])
    warm = list(seen)
    Path("config.json").exists()

    assert warm == []
    assert seen == [(Path("config.json"),)]


def test_a_query_to_an_open_index_looks_only_whether_the_file_was_replaced(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stored.sqlite"
    reranker = Reranking(model=tiny_checkpoint, index=path, **EXACT)
    reranker._open_index(reranker._model, create=True).add(["venus"])
    reranker._rerank("mars", ["venus"], [None])
    seen = note_file_accesses(monkeypatch)

    reranker._rerank("red planet", ["saturn", "venus"], [None, None])

    # Once to find the open index, and before and after what is read in it.
    assert [Path(found) for (found,) in seen] == [path] * 3


def note_file_accesses(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The arguments of each call of the system's about a file, from now on."""
    seen: list[object] = []
    for name in ("stat", "lstat", "readlink", "open", "listdir", "scandir"):
        monkeypatch.setattr(os, name, noting(getattr(os, name), seen))
    return seen


def noting(call: Callable[..., Any], seen: list[object]) -> Callable[..., Any]:
    def noted(*given: Any, **options: Any) -> Any:
        seen.append(given)
        return call(*given, **options)

    return noted


def test_a_relative_path_is_read_anew_in_another_directory(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    component = SharedModel(model="model", **EXACT)
    folders = []
    for name in ("stanford-bert", "stanford-electra"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").symlink_to(checkpoint(name))
        monkeypatch.chdir(tmp_path / name)
        folders.append(component.ranker.settings.checkpoint)

    assert folders == [str(checkpoint("stanford-bert")), str(checkpoint("stanford-electra"))]


def test_a_given_encoder_fills_the_fields_that_name_it(tiny_colbert: ColBERT) -> None:
    settings = tiny_colbert.settings

    component = SharedModel(colbert=tiny_colbert)

    assert component.model == settings.checkpoint
    assert (component.device, component.dtype) == ("cpu", "float32")
    assert component.document_cache == settings.document_cache


@pytest.mark.parametrize(
    ("option", "value"),
    [
        pytest.param("model", "somebody/else", id="model"),
        pytest.param("dtype", "bfloat16", id="dtype"),
        pytest.param("query_length", 16, id="query length"),
        pytest.param("raw_token_embeddings", True, id="raw token embeddings"),
        pytest.param("long_documents", "windows", id="long documents"),
    ],
)
def test_a_field_that_contradicts_the_encoder_is_refused(
    option: str, value: object, tiny_colbert: ColBERT
) -> None:
    with pytest.raises(ValidationError, match=f"{option} is .* leave one of the two out"):
        SharedModel(colbert=tiny_colbert, **{option: value})


def test_a_model_assigned_next_to_an_encoder_is_refused(tiny_colbert: ColBERT) -> None:
    component = SharedModel(colbert=tiny_colbert)

    with pytest.raises(ValidationError, match="leave one of the two out"):
        component.model = "somebody/else"

    assert component.model == tiny_colbert.settings.checkpoint


def test_other_spellings_of_the_same_choice_agree_with_the_encoder(
    tiny_colbert: ColBERT, tiny_checkpoint: Path
) -> None:
    spelling = tiny_checkpoint / ".." / tiny_checkpoint.name

    component = SharedModel(colbert=tiny_colbert, model=spelling, device=None, dtype="auto")

    assert component.ranker is tiny_colbert


def test_the_encoder_is_neither_dumped_nor_shown(tiny_colbert: ColBERT) -> None:
    component = SharedModel(colbert=tiny_colbert)

    assert "colbert" not in component.model_dump()
    assert "colbert" not in repr(component)


def test_the_resolved_model_is_not_kept(tiny_checkpoint: Path, copy_of: Callable) -> None:
    component = SharedModel(model=tiny_checkpoint, **EXACT)
    first = component.ranker

    component.model = copy_of("stanford-bert")

    assert component.colbert is None
    assert component.ranker is not first


def test_warm_up_loads_the_model_that_will_be_used(loads: list[str], tiny_checkpoint: Path) -> None:
    component = Reranking(model=tiny_checkpoint, **EXACT)

    component.load()
    component._rerank("mars", ["venus"], [None])

    assert len(loads) == 1


def test_unload_gives_the_weights_back_until_the_next_query(
    loads: list[str], tiny_checkpoint: Path
) -> None:
    component = Reranking(model=tiny_checkpoint, **EXACT)
    before = component._rerank("mars", ["venus"], [None])

    component.unload()
    loaded = component.ranker.loaded
    after = component._rerank("mars", ["venus"], [None])

    assert not loaded
    assert before == after
    assert len(loads) == 2


def test_unload_without_a_loaded_model_loads_nothing(
    loads: list[str], tiny_checkpoint: Path
) -> None:
    SharedModel(model=tiny_checkpoint, **EXACT).unload()

    assert loads == []


def test_unload_reaches_a_given_encoder(tiny_checkpoint: Path) -> None:
    colbert = ColBERT.from_pretrained(tiny_checkpoint, **EXACT)

    SharedModel(colbert=colbert).unload()

    assert not colbert.loaded


def test_all_components_of_a_model_load_it_once_from_any_thread_and_spelling(
    loads: list[str], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_checkpoint.parent)
    spellings = [
        LangChainRerank(model=tiny_checkpoint, **EXACT),
        LangChainRerank(model=tiny_checkpoint.name, top_n=1, **EXACT),
        LlamaIndexRerank(model=str(tiny_checkpoint), **EXACT),
        LlamaIndexRerank(model=f"./{tiny_checkpoint.name}/", score="sum", **EXACT),
    ]
    together = Barrier(8)

    def rank(number: int) -> object:
        together.wait()
        spellings[number % 4]._rerank(f"red planet {number}", ["mars", "venus"], [None, None])
        return spellings[number % 4].ranker

    with ThreadPoolExecutor(8) as threads:
        used = set(threads.map(rank, range(8)))

    assert len(loads) == 1
    assert used == {shared_colbert(tiny_checkpoint, **EXACT)}


def test_threads_with_queries_and_documents_of_many_lengths_get_the_same_scores(
    tiny_colbert: ColBERT,
) -> None:
    reranker = Reranking(colbert=tiny_colbert, top_n=None)
    queries = ["mars " * (1 + number % 7) for number in range(40)]
    texts = ["venus " * length for length in (1, 40, 90, 3)]

    expected = [reranker._rerank(query, texts, [None] * 4) for query in queries]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda query: reranker._rerank(query, texts, [None] * 4), queries))

    assert [[place.index for place in one] for one in found] == [
        [place.index for place in one] for one in expected
    ]
    assert [place.score for one in found for place in one] == pytest.approx(
        [place.score for one in expected for place in one], abs=1e-5
    )


def test_an_overlong_query_is_cut_with_one_warning(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reranker = Reranking(model=tiny_checkpoint, **EXACT)

    with caplog.at_level(logging.WARNING, logger="colbert_rag"):
        reranker._rerank("planet " * 500, ["mars"], [None])
        reranker._rerank("planet " * 600, ["mars"], [None])

    (record,) = caplog.records
    assert "longer than query_length=32 tokens and were cut" in record.getMessage()


def test_an_explanation_comes_with_each_result_and_encodes_nothing_again(
    colbert: Callable[..., ColBERT], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = colbert("stanford-bert", document_cache=None)
    encodings, explanations = [], []
    encode, explain = TextEncoder.documents, Explanation.of

    def noting(self: TextEncoder, texts: list[str], **options: bool) -> object:
        encodings.append(texts)
        return encode(self, texts, **options)

    def counting(query: str, text: str, **options: object) -> Explanation:
        explanations.append(text)
        return explain(query, text, **options)

    monkeypatch.setattr(TextEncoder, "documents", noting)
    monkeypatch.setattr(Explanation, "of", counting)
    texts = ["mars is red", "", "venus", "saturn has rings"]

    places = Reranking(colbert=model, explain=True, score="sum", top_n=2)._rerank(
        "red planet", texts, [None] * 4
    )

    assert encodings == [["mars is red", "venus", "saturn has rings"]]
    assert explanations == [texts[place.index] for place in places]
    assert [place.explanation["text"] for place in places] == explanations
    assert [place.explanation["score"] for place in places] == pytest.approx(
        [place.score for place in places], abs=1e-5
    )


def test_a_text_that_was_not_scored_has_no_explanation(tiny_colbert: ColBERT) -> None:
    reranker = Reranking(colbert=tiny_colbert, explain=True)

    places = reranker._rerank("red planet", ["mars", None, " "], [None] * 3)

    assert [place.explanation is None for place in places] == [False, True, True]
    assert reranker._rerank("red planet", [" "], [None])[0].explanation is None


def test_long_documents_can_be_scored_by_their_best_window(tiny_checkpoint: Path) -> None:
    options = {"model": tiny_checkpoint, "document_length": 40, **EXACT}
    long = "venus is hot and saturn has rings . " * 30 + "mars is the red planet"
    windowed = Reranking(long_documents="windows", explain=True, **options)
    truncating = Reranking(explain=True, **options)

    (place,) = windowed._rerank("mars is the red planet", [long], [None])
    (cut,) = truncating._rerank("mars is the red planet", [long], [None])

    (expected,) = windowed.ranker.rank("mars is the red planet", [long])
    assert (place.explanation["is_window"], cut.explanation["is_window"]) == (True, False)
    assert place.explanation["text_read"] == [*expected.span]
    assert place.score > cut.score
    assert windowed.ranker is not truncating.ranker


def test_windows_are_one_of_two_words() -> None:
    with pytest.raises(ValidationError, match="'truncate' or 'windows'"):
        SharedModel(long_documents="split")


def test_both_adapters_rank_alike_with_real_weights() -> None:
    texts = [
        "Bread rises because yeast makes gas.",
        "Paris has been the capital of France for centuries.",
        "The Loire is the longest river in France.",
    ]
    query = "Which city does the French government sit in?"
    options = {"model": "offline-minilm", "top_n": 2, **EXACT}

    documents = LangChainRerank(**options).compress_documents(
        [Document(text) for text in texts], query
    )
    nodes = LlamaIndexRerank(**options).postprocess_nodes(
        [NodeWithScore(node=TextNode(text=text)) for text in texts], query_str=query
    )

    assert [document.page_content for document in documents] == texts[1:]
    assert [node.text for node in nodes] == texts[1:]
    assert [document.metadata["relevance_score"] for document in documents] == pytest.approx(
        [node.score for node in nodes]
    )


def test_a_document_whose_vectors_are_not_numbers_comes_last_with_one_warning(
    copy_of: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_of("stanford-bert")
    spoil_the_word(folder, "saturn")
    reranker = Reranking(model=folder, **EXACT)

    with caplog.at_level(logging.WARNING, logger="colbert_rag"):
        places = reranker._rerank("red planet", ["saturn", "mars", "venus"], [None] * 3)

    assert places[-1].index == 0
    assert places[-1].score == -1.0
    assert len(caplog.records) == 1


def spoil_the_word(folder: Path, word: str) -> None:
    """Make the embedding of one vocabulary entry NaN."""
    token = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(word)
    tensors = load_file(folder / "model.safetensors")
    (table,) = [name for name in tensors if name.endswith("word_embeddings.weight")]
    tensors[table][token] = math.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"top_k": 3}, "top_k is no field of Reranking; did you mean top_n"),
        ({"k": 3}, "k is no field of Reranking; did you mean top_n"),
        ({"modle": "x"}, "did you mean model"),
        ({"score_treshold": 0.5}, "did you mean score_threshold"),
        ({"zzz": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_misspelt_field_is_named_with_the_one_that_was_meant(
    wrong: dict[str, object], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        Reranking(**wrong)  # type: ignore[arg-type]
