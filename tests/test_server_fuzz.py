"""Bodies of any kind, at every path: an answer or a refusal with reasons, never a failure."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colbert_rag import ColBERT, LocalIndex
from colbert_rag.remote import wire
from tests.helpers.serving import Running, serving

PATHS = [*wire.RERANK[:1], wire.SCORE, wire.POOLING, wire.SEARCH, wire.DOCUMENTS]
FIELDS = (
    "model query queries documents top_n return_documents max_tokens_per_doc score explain text_1 "
    "text_2 input input_type encoding_format k filter exact effort ids"
).split()

texts = st.text(max_size=20) | st.sampled_from(["red", "mean", "sum", "html", "query", "base64"])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["text", "id", "metadata", "$in", "$gte", "a"]), inner)
    ),
    max_leaves=8,
)
likely = st.fixed_dictionaries(
    {},
    optional={
        "query": texts,
        "queries": st.lists(texts, max_size=3),
        "documents": st.lists(texts | st.fixed_dictionaries({"text": texts}), max_size=4),
        "top_n": st.integers(-1, 5),
        "k": st.integers(-1, 5),
        "text_1": texts | st.lists(texts, max_size=3),
        "text_2": texts | st.lists(texts, max_size=3),
        "input": texts | st.lists(texts, max_size=3),
    },
)
bodies = st.builds(
    lambda first, second: {**first, **second},
    likely,
    st.dictionaries(st.sampled_from(FIELDS), anything, max_size=4),
)


@pytest.fixture(scope="module")
def server(tiny_colbert: ColBERT, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("fuzz")
    with LocalIndex(folder / "facts.sqlite", tiny_colbert) as index:
        index.add(["Mars is red.", "Saturn has rings."])
    with serving(folder, "--index", folder / "facts.sqlite", "--name", "planets") as running:
        yield running
        assert running.stop() == 0
        assert "Error at" not in running.log.read_text()


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(PATHS), method=st.sampled_from(["POST", "DELETE"]), body=bodies)
def test_no_body_makes_the_server_fail(
    path: str, method: str, body: dict[str, object], client: httpx.Client
) -> None:
    import json

    content = json.dumps(body).encode()

    answer = client.request(
        method, path, content=content, headers={"Content-Type": "application/json"}
    )

    assert answer.status_code in (200, 400, 404, 405, 413), (path, body, answer.text)
    found = answer.json()
    if answer.status_code != 200:
        assert found["message"] == found["detail"] == found["error"]["message"] != ""


def test_there_is_a_page_for_programs_that_lists_all_paths(client: httpx.Client) -> None:
    listed = client.get("/openapi.json").json()["paths"]

    assert {*PATHS, *wire.RERANK, wire.INDEX, wire.MODELS, wire.METRICS} <= set(listed)
