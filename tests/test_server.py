"""`colbert-rag serve`, asked by real clients, and by bodies as other clients send them.

What is right is what the model of this process says, which knows of no server.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cohere
import httpx
import numpy as np
import pytest

from colbert_rag import ColBERT
from colbert_rag.server.service import on_scale
from tests.helpers.serving import Running, serving

QUERY = "which planet is red?"
TEXTS = [
    "Saturn has rings of ice and rock.",
    "Mars is red, and has two moons.",
    "",
    "A planet is not a star; the red one is Mars.",
    "Mars is red, and has two moons.",
    "rock and wind " * 40,
]
EXACT = 1e-4


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    options = ("-m", tiny_checkpoint, "--name", "planets", "--name", "other")
    with serving(tmp_path_factory.mktemp("server"), *options) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def plain() -> Iterator[httpx.Client]:
    """What cohere's clients send by, closed at the end, which they leave to the collector."""
    with httpx.Client(timeout=60) as client:
        yield client


def ranked(model: ColBERT, **options: object) -> list[tuple[int, float]]:
    """What the local model says: places and means, best first."""
    return [(place.index, place.mean) for place in model.rank(QUERY, TEXTS, **options)]


def results(answer: httpx.Response) -> list[tuple[int, float]]:
    assert answer.status_code == 200, answer.text
    return [(found["index"], found["relevance_score"]) for found in answer.json()["results"]]


def same(found: list[tuple[int, float]], expected: list[tuple[int, float]]) -> bool:
    return [index for index, _ in found] == [index for index, _ in expected] and [
        score for _, score in found
    ] == pytest.approx([score for _, score in expected], abs=EXACT)


def test_it_says_where_it_listens_and_the_command_it_prints_works(server: Running) -> None:
    command = server.said.partition("Try: ")[2]

    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)

    answer = json.loads(done.stdout)
    assert {found["index"] for found in answer["results"]} == {0, 1}


def test_coheres_first_client(server: Running, plain: httpx.Client, tiny_colbert: ColBERT) -> None:
    client = cohere.Client(api_key="anything", base_url=server.url, httpx_client=plain)

    found = client.rerank(query=QUERY, documents=TEXTS, model="planets")

    assert same([(it.index, it.relevance_score) for it in found.results], ranked(tiny_colbert))
    assert found.meta.billed_units.search_units == 1


def test_coheres_first_client_gets_the_documents_it_asks_for(
    server: Running, plain: httpx.Client
) -> None:
    client = cohere.Client(api_key="anything", base_url=server.url, httpx_client=plain)
    documents = [{"text": text, "title": "ignored"} for text in TEXTS]

    found = client.rerank(query=QUERY, documents=documents, return_documents=True, top_n=3)

    assert [it.document.text for it in found.results] == [TEXTS[it.index] for it in found.results]
    assert len(found.results) == 3


def test_coheres_second_client(server: Running, plain: httpx.Client, tiny_colbert: ColBERT) -> None:
    client = cohere.ClientV2(api_key="anything", base_url=server.url, httpx_client=plain)

    found = client.rerank(model="planets", query=QUERY, documents=TEXTS, top_n=4)

    expected = ranked(tiny_colbert, top_k=4)
    assert same([(it.index, it.relevance_score) for it in found.results], expected)


async def test_coheres_asynchronous_client(server: Running, tiny_colbert: ColBERT) -> None:
    async with cohere.AsyncClientV2(api_key="anything", base_url=server.url) as client:
        found = await client.rerank(model="planets", query=QUERY, documents=TEXTS)

    assert same([(it.index, it.relevance_score) for it in found.results], ranked(tiny_colbert))


def test_coheres_client_raises_its_own_errors(server: Running, plain: httpx.Client) -> None:
    client = cohere.ClientV2(api_key="anything", base_url=server.url, httpx_client=plain)

    with pytest.raises(cohere.NotFoundError, match="no model of that name, expected 'planets'"):
        client.rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS)
    with pytest.raises(cohere.BadRequestError, match="query is empty or blank"):
        client.rerank(model="planets", query=" ", documents=TEXTS)


BODIES = {
    # https://api.jina.ai/redoc#tag/rerank: texts or objects, return_documents, top_n.
    "Jina": ("/v1/rerank", {"documents": TEXTS, "top_n": 6, "return_documents": False}),
    "Jina, objects": ("/v1/rerank", {"documents": [{"text": text} for text in TEXTS]}),
    # open_webui/retrieval/models/external.py: top_n is the number of documents.
    "Open WebUI": ("/v1/rerank", {"documents": TEXTS, "top_n": len(TEXTS)}),
    # litellm/llms/hosted_vllm/rerank/transformation.py: what is None is left out.
    "LiteLLM": (
        "/rerank",
        {"documents": TEXTS, "return_documents": True, "max_tokens_per_doc": 4096},
    ),
    # examples/online_serving/jinaai_rerank_client.py of vLLM, and what its server takes besides.
    "vLLM": ("/rerank", {"documents": TEXTS}),
    "vLLM, everything": (
        "/v2/rerank",
        {
            "documents": TEXTS,
            "top_n": 0,
            "truncate_prompt_tokens": -1,
            "priority": 0,
            "mm_processor_kwargs": None,
        },
    ),
}


@pytest.mark.parametrize("sender", BODIES)
def test_bodies_as_other_clients_send_them(
    sender: str, client: httpx.Client, tiny_colbert: ColBERT
) -> None:
    path, body = BODIES[sender]

    answer = client.post(path, json={"model": "planets", "query": QUERY, **body})

    assert same(results(answer), ranked(tiny_colbert))
    found = answer.json()
    assert found["id"]
    assert found["model"] == "planets"
    for result in found["results"]:
        # LiteLLM fails where the document is there and null.
        shown = {"text": TEXTS[result["index"]]}
        wanted = body.get("return_documents", path != "/v2/rerank")
        assert result.get("document", "absent") == (shown if wanted else "absent")


def test_sums_are_means_times_the_rows_of_the_query(
    client: httpx.Client, tiny_colbert: ColBERT
) -> None:
    body = {"query": QUERY, "documents": TEXTS, "score": "sum"}

    answer = client.post("/rerank", json=body)

    expected = [(place.index, place.score) for place in tiny_colbert.rank(QUERY, TEXTS)]
    assert same(results(answer), expected)
    rows = answer.json()["query_rows"]
    assert rows == tiny_colbert.rank(QUERY, TEXTS).query_rows
    means = client.post("/rerank", json={"query": QUERY, "documents": TEXTS})
    assert same([(index, mean * rows) for index, mean in results(means)], expected)


def test_several_queries_with_one_list_of_documents(
    client: httpx.Client, tiny_colbert: ColBERT
) -> None:
    queries = [QUERY, "rings of ice"]

    answer = client.post("/rerank", json={"queries": queries, "documents": TEXTS, "top_n": 2})

    rankings = tiny_colbert.rank_many(queries, TEXTS, top_k=2)
    for found, ranking in zip(answer.json()["data"], rankings, strict=True):
        pairs = [(it["index"], it["relevance_score"]) for it in found["results"]]
        assert same(pairs, [(place.index, place.mean) for place in ranking])
        assert found["query_rows"] == ranking.query_rows


def test_several_queries_with_documents_of_their_own(
    client: httpx.Client, tiny_colbert: ColBERT
) -> None:
    queries, lists = [QUERY, "rings of ice"], [TEXTS[:2], [TEXTS[3], {"text": TEXTS[0]}, TEXTS[1]]]
    body = {"queries": queries, "documents": lists, "return_documents": True}

    answer = client.post("/rerank", json=body)

    rankings = tiny_colbert.rank_many(queries, lists)
    for found, ranking in zip(answer.json()["data"], rankings, strict=True):
        pairs = [(it["index"], it["relevance_score"]) for it in found["results"]]
        assert same(pairs, [(place.index, place.mean) for place in ranking])
        assert [it["document"]["text"] for it in found["results"]] == [it.text for it in ranking]


def test_no_documents_are_no_results(client: httpx.Client) -> None:
    answer = client.post("/v2/rerank", json={"query": QUERY, "documents": []})

    assert answer.json()["results"] == []


def test_documents_are_cut_where_the_client_says(
    client: httpx.Client, tiny_colbert: ColBERT
) -> None:
    long = "mars venus saturn moon " * 3
    (starts,) = tiny_colbert.tokenizer.starts([long])
    body = {"query": QUERY, "documents": [long, "mars"], "max_tokens_per_doc": 4}

    answer = client.post("/v2/rerank", json={**body, "return_documents": True})

    ranking = tiny_colbert.rank(QUERY, [long[: starts[4]], "mars"])
    assert same(results(answer), [(place.index, place.mean) for place in ranking])
    assert {it["document"]["text"] for it in answer.json()["results"]} == {long, "mars"}


def test_an_explanation_is_that_of_the_local_model(
    client: httpx.Client, tiny_colbert: ColBERT
) -> None:
    body = {"query": QUERY, "documents": TEXTS, "top_n": 2, "explain": True}

    answer = client.post("/rerank", json=body)

    place = tiny_colbert.rank(QUERY, TEXTS)[0]
    expected = tiny_colbert.explain(QUERY, place.text).to_dict()
    found = answer.json()["results"][0]["explanation"]
    assert found["score"] == pytest.approx(expected["score"], abs=EXACT)
    assert [match["query"] for match in found["matches"]] == [
        match["query"] for match in expected["matches"]
    ]
    assert "html" not in found


def test_half_a_character_is_answered_as_it_came(client: httpx.Client) -> None:
    body = b'{"query": "red", "documents": ["a \\ud83d b", "c"], "return_documents": true}'

    answer = client.post("/rerank", content=body, headers={"Content-Type": "application/json"})

    assert {it["document"]["text"] for it in answer.json()["results"]} == {"a \ud83d b", "c"}


def test_one_text_is_scored_with_many(client: httpx.Client, tiny_colbert: ColBERT) -> None:
    """https://docs.vllm.ai/en/latest/models/pooling_models/scoring/: text_1 and text_2."""
    answer = client.post("/v1/score", json={"text_1": QUERY, "text_2": TEXTS, "model": "other"})

    rows = tiny_colbert.rank(QUERY, TEXTS).query_rows
    expected = [score / rows for score in tiny_colbert.score(QUERY, TEXTS)]
    found = answer.json()
    assert [it["score"] for it in found["data"]] == pytest.approx(expected, abs=EXACT)
    assert [it["index"] for it in found["data"]] == list(range(len(TEXTS)))
    assert {it["object"] for it in found["data"]} == {"score"}


def test_pairs_are_scored_one_by_one(client: httpx.Client, tiny_colbert: ColBERT) -> None:
    queries = [QUERY, "rings", QUERY]
    body = {"queries": queries, "documents": TEXTS[:3], "score": "sum"}

    answer = client.post("/score", json=body)

    expected = [
        tiny_colbert.score(query, [text])[0] for query, text in zip(queries, TEXTS, strict=False)
    ]
    assert [it["score"] for it in answer.json()["data"]] == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("kind", ["document", "query"])
def test_token_vectors_in_both_encodings(
    kind: str, client: httpx.Client, tiny_colbert: ColBERT
) -> None:
    body = {"input": TEXTS[:2], "input_type": kind}
    encode = getattr(tiny_colbert, "encode_documents" if kind == "document" else "encode_queries")
    expected = [rows.numpy() for rows in encode(TEXTS[:2])]

    numbers = client.post("/pooling", json=body).json()
    packed = client.post("/pooling", json={**body, "encoding_format": "base64"}).json()

    for place, rows in enumerate(expected):
        assert numbers["data"][place]["object"] == "pooling"
        np.testing.assert_allclose(numbers["data"][place]["data"], rows, atol=EXACT)
        raw = base64.b64decode(packed["data"][place]["data"])
        np.testing.assert_allclose(np.frombuffer(raw, "<f4").reshape(rows.shape), rows, atol=EXACT)
    assert numbers["usage"]["total_tokens"] == sum(map(len, expected))


def test_the_model_describes_itself(client: httpx.Client, tiny_colbert: ColBERT) -> None:
    found = client.get("/v1/models").json()

    assert [it["id"] for it in found["data"]] == ["planets", "other"]
    first = found["data"][0]
    assert first["object"] == "model"
    assert first["fingerprint"] == tiny_colbert.fingerprint
    assert first["dim"] == tiny_colbert.dim
    assert first["max_model_len"] == tiny_colbert.tokenizer.rules("document").length
    assert first["settings"]["checkpoint"] == tiny_colbert.settings.checkpoint
    assert "token" not in first["settings"]


def test_it_is_well_and_ready(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").status_code == 200


def test_counts_are_in_the_text_format_of_prometheus(client: httpx.Client, server: Running) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    before = server.metric("colbert_rag_documents_total")
    client.post("/rerank", json={"query": QUERY, "documents": TEXTS})

    families = list(text_string_to_metric_families(client.get("/metrics").text))

    values = {sample.name: sample.value for family in families for sample in family.samples}
    assert values["colbert_rag_documents_total"] == before + len(TEXTS)
    assert values["process_resident_memory_bytes"] > 0
    routes = {
        sample.labels["route"]
        for family in families
        for sample in family.samples
        if sample.name == "colbert_rag_requests_total"
    }
    assert "/rerank" in routes


def test_no_page_of_the_framework_loads_anything_from_elsewhere(client: httpx.Client) -> None:
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
    assert "/rerank" in client.get("/openapi.json").json()["paths"]


BAD = {
    "no JSON": ("/rerank", b"{", "the body is not JSON", 400),
    "an empty body": ("/rerank", b"", "the body is missing", 400),
    "a list": ("/rerank", b"[1]", "the body is a list", 400),
    "no query": ("/rerank", b'{"documents": []}', "expected a query, or queries", 400),
    "both": ("/rerank", b'{"query": "q", "queries": [], "documents": []}', "or queries", 400),
    "no documents": ("/rerank", b'{"query": "q"}', "documents is missing", 400),
    "a number": ("/rerank", b'{"query": "q", "documents": [1]}', r"documents[0] is int", 400),
    "a blank query": ("/rerank", b'{"query": " ", "documents": ["a"]}', "query is empty", 400),
    "top_n": ("/rerank", b'{"query": "q", "documents": [], "top_n": -1}', "top_n is -1", 400),
    "score": ("/rerank", b'{"query": "q", "documents": [], "score": "x"}', "'mean' or 'sum'", 400),
    "lists": ("/rerank", b'{"queries": ["q"], "documents": [["a"], ["b"]]}', "2 lists for 1", 400),
    "mixed": ("/rerank", b'{"queries": ["q"], "documents": [["a"], "b"]}', "no list", 400),
    "nested": ("/rerank", b"[" * 100_000, "cannot be read", 400),
    "many": (
        "/rerank",
        json.dumps({"query": "q", "documents": ["a"] * 1001}).encode(),
        "documents holds 1,001 texts, expected 1,000 at most",
        413,
    ),
    "long": (
        "/rerank",
        json.dumps({"query": "q", "documents": ["a" * 200_001]}).encode(),
        "200,001 characters",
        413,
    ),
    "huge": ("/rerank", b" " * (16 * 2**20 + 1), "larger than 16 MiB", 413),
    "unequal": ("/score", b'{"text_1": ["a", "b"], "text_2": ["c"]}', "text_1 holds 2", 400),
    "no input": ("/pooling", b"{}", "input is missing", 400),
    "another model": ("/pooling", b'{"model": "x", "input": "a"}', "no model of that name", 404),
    "no path": ("/v1/nothing", b"{}", "nothing at this path", 404),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_said_in_the_shapes_that_clients_parse(
    what: str, client: httpx.Client
) -> None:
    path, body, message, status = BAD[what]

    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == status
    found = answer.json()
    assert message in found["message"]
    assert found["message"] == found["detail"] == found["error"]["message"]
    assert set(found["error"]) == {"message", "type", "code", "param"}


def test_an_error_names_the_field(client: httpx.Client) -> None:
    answer = client.post("/rerank", json={"query": "q", "documents": [["a"]]})

    assert answer.json()["error"]["param"] == "documents"


BLANK = {
    "query": ("/rerank", {"query": " ", "documents": ["a"]}),
    "queries": ("/rerank", {"queries": ["q", ""], "documents": ["a"]}),
    "text_1": ("/score", {"text_1": "", "text_2": ["a"]}),
}


@pytest.mark.parametrize("field", BLANK)
def test_a_blank_query_is_one_of_a_field(field: str, client: httpx.Client) -> None:
    path, body = BLANK[field]

    error = client.post(path, json=body).json()["error"]

    assert error["param"] == field
    assert "is empty or blank" in error["message"]


def test_null_is_what_was_left_out(client: httpx.Client) -> None:
    body = {"query": QUERY, "documents": TEXTS}
    nulls = {"top_n": None, "score": None, "explain": None, "return_documents": None}

    left_out, null = client.post("/rerank", json=body), client.post("/rerank", json=body | nulls)

    assert results(null) == results(left_out)


@pytest.mark.parametrize("path", ["/", "/health", "/ready"])
def test_whether_it_lives_can_be_asked_by_head(path: str, client: httpx.Client) -> None:
    answer = client.head(path)

    assert (answer.status_code, answer.content) == (200, b"")


def test_a_mean_is_one_at_most() -> None:
    """Rounding makes the sum of a query's own rows larger than their number."""
    assert on_scale(1.00005, "mean") == 1.0
    assert on_scale(-1.00005, "mean") == -1.0
    assert on_scale(32.002, "sum") == 32.002


def test_a_form_is_not_read_as_json(client: httpx.Client) -> None:
    """What a page of another site can send without being asked for leave."""
    body = json.dumps({"query": "q", "documents": ["a"]}).encode()

    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        headers = {"Content-Type": kind} if kind else {}
        assert client.post("/rerank", content=body, headers=headers).status_code == 400


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        (
            "application/x-www-form-urlencoded",  # what `curl -d` sends unless told otherwise
            '{"query": "a"}',
            "the Content-Type is application/x-www-form-urlencoded, expected application/json",
        ),
        ("", ' {"query": "a"}', "the Content-Type is missing, expected application/json"),
        (
            "application/x-www-form-urlencoded",
            "query=a",
            "the body is no JSON, expected a JSON object, sent with Content-Type: application/json",
        ),
    ],
)
def test_a_form_is_told_whether_its_header_or_its_body_is_wrong(
    kind: str, body: str, message: str, client: httpx.Client
) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = client.post("/rerank", content=body, headers=headers)

    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("localhost:8000", "127.0.0.1", "[::1]:80")),
        *((host, 200) for host in ("localhost.", "LOCALHOST.:80", "localhost:")),
        *((host, 403) for host in ("evil.example", "localhost.evil.example", "[", "10.0.0.1:80")),
        *((host, 403) for host in ("evil@localhost", "localhost/evil", "localhost#x", "::1", "")),
        *((host, 403) for host in ("localhost:x", "localhost..", "[::1", "127.0.0.2")),
    ],
)
def test_a_page_of_another_site_cannot_pass_for_ours(
    host: str, status: int, client: httpx.Client
) -> None:
    answer = client.get("/v1/models", headers={"Host": host})

    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["code"] == "wrong_host"


def test_nothing_of_a_user_is_in_the_log(client: httpx.Client, server: Running) -> None:
    secret = "xyzzy-4711"
    body = {"query": secret, "documents": [secret, {"text": secret, secret: 1}]}
    client.post("/rerank", json=body)
    client.post("/rerank", json={**body, "top_n": secret})
    client.get(f"/{secret}?{secret}={secret}")

    assert secret not in server.log.read_text()
