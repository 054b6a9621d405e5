"""`colbert-rag serve --index`: what is found, stored and removed is what the index itself says."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from colbert_rag import ColBERT, LocalIndex
from colbert_rag.cli import main
from tests.helpers.serving import Running, serving

QUERY = "which planet is red?"
FACTS = [
    {"id": "saturn", "text": "Saturn has rings of ice and rock.", "metadata": {"order": 6}},
    {"id": "mars", "text": "Mars is red, and has two moons.", "metadata": {"order": 4}},
    {"id": "a/b?c", "text": "A red star is no planet.", "metadata": {"kind": "star"}},
]


@pytest.fixture(scope="module")
def path(tiny_colbert: ColBERT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "facts.sqlite"
    with LocalIndex(path, tiny_colbert) as index:
        index.add(FACTS)
    return path


@pytest.fixture(scope="module")
def server(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("server"), "--index", path) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def found(results: list[dict]) -> list[tuple[str, str, dict, float]]:
    return [(it["id"], it["text"], it["metadata"], it["score"]) for it in results]


@pytest.mark.parametrize("filter", [None, {"order": {"$gte": 5}}])
@pytest.mark.parametrize("score", ["mean", "sum"])
def test_a_search_finds_what_the_index_finds(
    filter: dict | None, score: str, client: httpx.Client, path: Path, tiny_colbert: ColBERT
) -> None:
    body = {"query": QUERY, "k": 2, "filter": filter, "score": score}

    answer = client.post("/v1/search", json=body).json()

    with LocalIndex(path, tiny_colbert, read_only=True) as index:
        hits = index.search(QUERY, 2, filter)
    scores = [hit.mean if score == "mean" else hit.score for hit in hits]
    assert found(answer["results"]) == [
        (hit.id, hit.text, dict(hit.metadata), pytest.approx(value, abs=1e-4))
        for hit, value in zip(hits, scores, strict=True)
    ]
    assert answer["query_rows"] == hits[0].query_rows


def test_several_queries_are_searched_at_once(
    client: httpx.Client, path: Path, tiny_colbert: ColBERT
) -> None:
    queries = [QUERY, "rings of ice"]

    answer = client.post("/v1/search", json={"queries": queries, "k": 1, "explain": True}).json()

    with LocalIndex(path, tiny_colbert, read_only=True) as index:
        expected = [hits[0].id for hits in index.search_many(queries, 1)]
    assert [it["results"][0]["id"] for it in answer["data"]] == expected
    assert answer["data"][0]["results"][0]["explanation"]["query"] == QUERY


def test_documents_come_and_go(client: httpx.Client) -> None:
    venus = {"id": "venus", "text": "Venus is hot.", "metadata": {"order": 2}}

    added = client.post("/v1/documents", json={"documents": [venus, "Pluto is far."]}).json()

    assert {name: added[name] for name in ("added", "updated", "unchanged")} == {
        "added": 2,
        "updated": 0,
        "unchanged": 0,
    }
    assert added["ids"][0] == "venus"
    assert client.get("/v1/documents/venus").json() == venus
    assert client.get(f"/v1/documents/{added['ids'][1]}").json()["text"] == "Pluto is far."
    again = client.post("/v1/documents", json={"documents": [venus]}).json()
    assert again["unchanged"] == 1
    body = {"filter": {"order": 2}}
    assert client.request("DELETE", "/v1/documents", json=body).json() == {"deleted": 1}
    body = {"ids": [added["ids"][1], "unknown"]}
    assert client.request("DELETE", "/v1/documents", json=body).json() == {"deleted": 1}
    gone = client.get("/v1/documents/venus")
    assert gone.status_code == 404
    assert gone.json()["error"]["code"] == "document_not_found"


def test_an_id_may_hold_what_a_path_may(client: httpx.Client) -> None:
    assert client.get("/v1/documents/a%2Fb%3Fc").json() == FACTS[2]


def test_an_id_with_a_newline_is_that_document(client: httpx.Client) -> None:
    names = ["n", "n\n", "n\nm", "\nn", "n\r\n"]
    documents = [{"id": name, "text": f"text {place}"} for place, name in enumerate(names)]
    client.post("/v1/documents", json={"documents": documents})

    found = [client.get(f"/v1/documents/{quote(name, safe='')}").json() for name in names]

    client.request("DELETE", "/v1/documents", json={"ids": names})
    assert [(it.get("id"), it.get("text")) for it in found] == [
        (it["id"], it["text"]) for it in documents
    ]
    assert client.get("/v1/documents/n%0A").status_code == 404


def test_half_a_character_is_no_id_to_remove(client: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}

    answer = client.request(
        "DELETE", "/v1/documents", content=rb'{"ids": ["a", "\ud83d"]}', headers=headers
    )

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "ids")
    assert "lone surrogate" in answer.json()["message"]


def test_the_index_describes_itself(client: httpx.Client, tiny_colbert: ColBERT) -> None:
    described = client.get("/v1/index").json()

    assert described["info"]["fingerprint"] == tiny_colbert.fingerprint
    assert described["info"]["dim"] == tiny_colbert.dim
    assert described["stats"]["documents"] == len(FACTS)
    assert described["read_only"] is False


BAD = {
    "filter": ("POST", "/v1/search", {"query": "q", "filter": {"$x": 1}}, "$x", 400),
    "no filter": ("POST", "/v1/search", {"query": "q", "filter": 3}, "filter is 3", 400),
    "no results": ("POST", "/v1/search", {"query": "q", "k": 0}, "k is 0", 400),
    "much": ("POST", "/v1/search", {"query": "q", "k": 2000}, "k asks for 2,000 results", 413),
    "explained": ("POST", "/v1/search", {"query": "q", "k": 200, "explain": True}, "200", 400),
    "blank": ("POST", "/v1/search", {"query": ""}, "empty or blank", 400),
    "key": ("POST", "/v1/documents", {"documents": [{"text": "a", "x": 1}]}, "'x'", 400),
    "id": ("POST", "/v1/documents", {"documents": [{"text": "a", "id": 3}]}, "id 3 is an int", 400),
    "nothing": ("DELETE", "/v1/documents", {}, "either ids or a filter", 400),
    "both": ("DELETE", "/v1/documents", {"ids": [], "filter": {}}, "either ids or a filter", 400),
    "all": ("DELETE", "/v1/documents", {"filter": {}}, "would delete every document", 400),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_said(what: str, client: httpx.Client) -> None:
    method, path, body, message, status = BAD[what]

    answer = client.request(method, path, json=body)

    assert answer.status_code == status
    assert message in answer.json()["message"]


WAYS = {
    "both": ({"exact": True, "effort": 3}, "exact"),
    "too little": ({"effort": 0}, "effort"),
    "too much": ({"effort": 6}, "effort"),
    "text": ({"effort": "3"}, "effort"),
    "fraction": ({"effort": 2.0}, "effort"),
    "flag": ({"effort": True}, "effort"),
    "list": ({"effort": [1]}, "effort"),
    "huge": ({"effort": 10**30}, "effort"),
    "yes": ({"exact": "yes"}, "exact"),
    "one": ({"exact": 1}, "exact"),
}


def test_null_is_what_was_left_out(client: httpx.Client) -> None:
    nulls = {"k": None, "score": None, "explain": None, "exact": None, "filter": None}

    left_out = client.post("/v1/search", json={"query": QUERY}).json()
    null = client.post("/v1/search", json={"query": QUERY, **nulls}).json()

    assert null["results"] == left_out["results"]


def test_a_method_that_a_path_has_not_is_answered_by_those_it_has(client: httpx.Client) -> None:
    answer = client.put("/v1/documents", json={})

    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, POST")
    assert client.post("/health").headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("what", WAYS)
def test_a_way_to_search_that_is_none_is_a_bad_request(what: str, client: httpx.Client) -> None:
    fields, param = WAYS[what]

    answer = client.post("/v1/search", json={"query": "q", **fields})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert "expected" in answer.json()["message"] or "leave one" in answer.json()["message"]


def test_an_effort_is_refused_where_there_is_one_way_to_search(client: httpx.Client) -> None:
    import inspect

    taken = inspect.signature(LocalIndex.search_many).parameters
    for name, value in (("exact", True), ("effort", 1)):
        answer = client.post("/v1/search", json={"query": "q", name: value})
        assert (answer.status_code == 400) is (name not in taken)


def test_writers_of_one_moment_wait_for_each_other(client: httpx.Client, server: Running) -> None:
    before = client.get("/v1/index").json()["stats"]["documents"]

    def add(number: int) -> int:
        with server.client() as own:
            body = {"documents": [{"id": f"w{number}", "text": f"moon {number}"}]}
            return own.post("/v1/documents", json=body).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(add, range(24))) == {200}

    assert client.get("/v1/index").json()["stats"]["documents"] == before + 24
    ids = [f"w{number}" for number in range(24)]
    client.request("DELETE", "/v1/documents", json={"ids": ids})


def test_an_index_that_may_only_be_read(path: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--index", path, "--read-only") as running, running.client() as client:
        assert client.post("/v1/search", json={"query": QUERY}).status_code == 200
        refused = client.post("/v1/documents", json={"documents": ["a"]})
        assert refused.status_code == 403
        assert "--read-only" in refused.json()["message"]
        assert client.request("DELETE", "/v1/documents", json={"ids": ["mars"]}).status_code == 403


def test_an_index_that_is_not_there_is_made(tiny_checkpoint: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.sqlite"
    with serving(tmp_path, "--index", new, "-m", tiny_checkpoint) as running:
        with running.client() as client:
            assert client.post("/v1/search", json={"query": "q"}).json()["results"] == []
            client.post("/v1/documents", json={"documents": ["Mars is red."]})
        assert "it is made now" in running.log.read_text()
        running.stop()

    with LocalIndex(new, read_only=True) as index:
        assert [document.text for document in index] == ["Mars is red."]


def test_an_index_is_said_to_be_made_only_when_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new.sqlite"

    assert main(["serve", "--port", "0", "--index", str(new), "-m", "/no/such/model"]) == 1

    err = capsys.readouterr().err
    assert "/no/such/model" in err
    assert "made now" not in err
    assert not new.exists()


def test_without_an_index_there_is_nothing_to_search(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "-m", tiny_checkpoint) as running, running.client() as client:
        answer = client.post("/v1/search", json={"query": "q"})

    assert answer.status_code == 404
