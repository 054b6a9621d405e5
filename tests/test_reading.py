"""Reading documents from files: what becomes a document, and what each flaw is called."""

import io
import json
import os
import random
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from colbert_rag.cli.reading import (
    READERS,
    SUFFIXES,
    ReadingError,
    ReadingOptions,
    SourceDocument,
    files,
    read_documents,
)
from colbert_rag.errors import ColBERTRagError

GUIDE = """\
---
title: not part of the text
---
Before any heading.

# Install
## Windows ##
Run the *installer*.

```sh
# a comment, not a heading
pip install x
```

Linux
-----
Use the package manager.

Then restart.
***
- a list
---
After a rule.

Licence
=======
Free.

#hashtag, not a heading
## C#
Sharp.
"""


def read(*paths: Path | str, stdin: bytes = b"", **options: Any) -> list[SourceDocument]:
    chosen = ReadingOptions(**options)
    return list(read_documents([str(path) for path in paths], chosen, stdin=io.BytesIO(stdin)))


def texts(*paths: Path | str, **options: Any) -> list[str]:
    return [document.text for document in read(*paths, **options)]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Records


def test_a_json_line_gives_text_title_id_and_the_other_fields(tmp_path: Path) -> None:
    record = {"_id": 7, "title": "Mars", "text": "It is red.", "year": 1877, "tags": ["planet"]}

    (document,) = read(write(tmp_path, "facts.jsonl", json.dumps(record)))

    assert (document.text, document.title, document.id) == ("It is red.", "Mars", "7")
    assert document.metadata == {"year": 1877, "tags": ["planet"]}
    assert document.location == f"{tmp_path / 'facts.jsonl'}:1"


def test_a_title_is_joined_to_the_text_as_the_beir_benchmarks_do() -> None:
    # beir/retrieval/evaluation: (doc["title"] + " " + doc["text"]).strip()
    assert SourceDocument("x", 1, "It is red.", "Mars").content == "Mars It is red."
    assert SourceDocument("x", 1, "It is red.").content == "It is red."


def test_blank_json_lines_are_passed_over_and_still_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "x.jsonl", '\n{"text": "a"}\n   \r\n"b"\n')

    assert [(d.line, d.text) for d in read(path)] == [(2, "a"), (4, "b")]


@pytest.mark.parametrize("name", ["x.json", "x"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list_is_one_document_for_each_record(
    name: str, indent: int | None, tmp_path: Path
) -> None:
    records = [{"text": "a", "id": 7, "year": 1999}, {"text": "b"}]

    found = read(write(tmp_path, name, json.dumps(records, indent=indent)))

    assert [(d.line, d.text, d.id) for d in found] == [(1, "a", "7"), (2, "b", None)]
    assert found[0].metadata == {"year": 1999}


def test_a_json_list_of_strings_is_one_document_for_each(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "x.json", '["a", "b"]')) == ["a", "b"]


@pytest.mark.parametrize("content", ["[]", " [ ]\n", "[\n]", "\ufeff[]", ""])
def test_an_empty_json_list_holds_no_document(content: str, tmp_path: Path) -> None:
    assert read(write(tmp_path, "x.json", content)) == []


def test_a_json_list_with_blanks_before_its_records_is_no_prose(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "x.json", '[ {"text": "a"},\n  "b" ]')) == ["a", "b"]


def test_strings_on_the_lines_of_a_json_file_are_documents(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "x.json", '"a"\n"b"\n')) == ["a", "b"]


def test_an_object_over_several_lines_is_json_but_no_list(tmp_path: Path) -> None:
    path = write(tmp_path, "x.json", json.dumps({"text": "a", "id": 1}, indent=1))

    with pytest.raises(ReadingError, match=r"x\.json: found a dict\. Expected one list"):
        read(path)


def test_prose_in_a_json_file_is_read_where_that_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, "x.json", "[Mars](mars.md) is red.\n\n- So is [rust].")

    with pytest.raises(ReadingError, match=r"x\.json:1: not JSON.*for prose: --format text"):
        read(path)
    assert texts(path, format="text") == ["[Mars](mars.md) is red.", "- So is [rust]."]


def test_an_empty_text_is_a_document(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "x.jsonl", '{"text": ""}')) == [""]


@pytest.mark.parametrize(
    "name", ["text", "content", "contents", "page_content", "body", "passage", "Text"]
)
def test_the_usual_names_of_a_text_are_found(tmp_path: Path, name: str) -> None:
    assert texts(write(tmp_path, "x.jsonl", json.dumps({"a": 1, name: "found"}))) == ["found"]


def test_named_fields_are_taken_instead_of_the_usual_ones(tmp_path: Path) -> None:
    record = {"text": "no", "title": "no", "id": "no", "answer": "A", "head": "H", "key": 0}
    path = write(tmp_path, "x.jsonl", json.dumps(record))

    (document,) = read(path, text_field="answer", title_field="head", id_field="key")

    assert (document.text, document.title, document.id) == ("A", "H", "0")
    assert document.metadata == {"text": "no", "title": "no", "id": "no"}


def test_an_empty_title_field_leaves_titles_out(tmp_path: Path) -> None:
    path = write(tmp_path, "x.jsonl", '{"text": "a", "title": "T"}')

    (document,) = read(path, title_field="")

    assert (document.title, document.metadata) == ("", {"title": "T"})


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_parted_by_what_its_first_line_holds_most(tmp_path: Path, delimiter: str) -> None:
    path = write(tmp_path, "x.csv", delimiter.join(("id", "text", "year\n1", "red", "1877\n")))

    (document,) = read(path)

    assert (document.id, document.text, document.metadata) == ("1", "red", {"year": "1877"})


def test_a_csv_cell_may_hold_delimiters_quotes_and_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", 'id,text\r\n1,"a ""b"", c\nd"\r\n\r\n2,e\r\n')

    assert [(d.line, d.text) for d in read(path)] == [(2, 'a "b", c\nd'), (5, "e")]


# Texts


def test_plain_text_is_cut_into_paragraphs(tmp_path: Path) -> None:
    path = write(tmp_path, "x.txt", "\n\nOne,\nstill one.\n  \nTwo.\r\n\r\n\r\nThree.")

    assert [(d.line, d.text) for d in read(path)] == [
        (3, "One,\nstill one."),
        (6, "Two."),
        (9, "Three."),
    ]


def test_plain_text_is_cut_into_lines_when_asked_to(tmp_path: Path) -> None:
    path = write(tmp_path, "x.txt", " One \nTwo\n\nThree")

    assert [(d.line, d.text) for d in read(path, split="lines")] == [
        (1, "One"),
        (2, "Two"),
        (4, "Three"),
    ]


def test_a_whole_file_is_one_document_when_asked_to(tmp_path: Path) -> None:
    path = write(tmp_path, "x.txt", "\nOne\n\nTwo\n\n")

    assert [(d.line, d.text) for d in read(path, split="file")] == [(2, "One\n\nTwo")]


def test_markdown_is_cut_into_sections_under_their_headings(tmp_path: Path) -> None:
    path = write(tmp_path, "guide.md", GUIDE)

    found = [(d.line, d.title, d.text.splitlines()[0]) for d in read(path)]

    assert found == [
        (4, "", "Before any heading."),
        (8, "Install > Windows", "Run the *installer*."),
        (17, "Install > Linux", "Use the package manager."),
        (27, "Licence", "Free."),
        (31, "Licence > C#", "Sharp."),
    ]


def test_code_and_rules_inside_a_section_are_not_headings(tmp_path: Path) -> None:
    found = texts(write(tmp_path, "guide.md", GUIDE))

    assert "# a comment, not a heading\npip install x" in found[1]
    assert found[2].endswith("***\n- a list\n---\nAfter a rule.")
    assert found[3] == "Free.\n\n#hashtag, not a heading"


def test_paragraphs_of_markdown_keep_their_headings(tmp_path: Path) -> None:
    path = write(tmp_path, "x.md", "# A\none\n\ntwo\n# B\nthree\n")

    found = [(d.title, d.text) for d in read(path, split="paragraphs")]

    assert found == [("A", "one"), ("A", "two"), ("B", "three")]


def test_a_rule_that_opens_markdown_is_not_taken_for_front_matter(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "x.md", "---\nText.\n")) == ["---\nText."]


# Files and folders


def test_a_folder_is_read_in_order_without_what_is_hidden_or_unknown(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.jsonl", ".git/d.txt", ".e.txt", "photo.png"):
        write(tmp_path, name, '"c"' if name.endswith("jsonl") else name)

    found = [(Path(d.source).relative_to(tmp_path).as_posix(), d.text) for d in read(tmp_path)]

    assert found == [("a.md", "a.md"), ("b.txt", "b.txt"), ("sub/c.jsonl", "c")]


def test_several_paths_are_read_in_the_order_given(tmp_path: Path) -> None:
    b, a = write(tmp_path, "b.txt", "b"), write(tmp_path, "a.txt", "a")

    assert texts(b, "-", a, stdin=b"stdin") == ["b", "stdin", "a"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_has_a_reader(suffix: str) -> None:
    assert SUFFIXES[suffix] in {None, *READERS}


def test_suffixes_are_known_in_capitals_too(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "X.JSONL", '"a"')) == ["a"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param('\n{"text": "a"}\n', ["a"], id="JSON lines"),
        pytest.param("id,text\n1,a\n", ["a"], id="CSV with a known column"),
        pytest.param("well, said\nshe", ["well, said\nshe"], id="a comma makes no CSV"),
        pytest.param("text\nand more", ["text\nand more"], id="one word makes no CSV"),
        pytest.param("x" * 200_000, ["x" * 200_000], id="one very long line"),
        pytest.param("", [], id="nothing"),
    ],
)
def test_the_format_of_standard_input_is_told_from_its_first_line(
    content: str, expected: list[str]
) -> None:
    assert texts("-", stdin=content.encode()) == expected


def test_a_named_field_tells_csv_on_standard_input(tmp_path: Path) -> None:
    assert texts("-", stdin=b"key,Answer\n1,a\n", text_field="Answer") == ["a"]


def test_a_file_with_another_suffix_is_told_from_its_first_line(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "dump.json", '{"text": "a"}\n{"text": "b"}\n')) == ["a", "b"]


def test_a_chosen_format_overrides_the_suffix(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "x.txt", "# A\nb"), format="markdown") == ["b"]


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "x.csv", b"\xef\xbb\xbftext\na\n")) == ["a"]
    assert texts(write(tmp_path, "x.txt", b"\xef\xbb\xbfa")) == ["a"]


def test_a_file_is_read_as_a_stream() -> None:
    endless = io.BufferedReader(Endless(b'{"text": "a"}\n'))
    documents = read_documents(["-"], ReadingOptions(), stdin=endless)

    assert [next(documents).line for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("form", READERS)
def test_any_bytes_give_documents_or_an_error_of_ours(form: str) -> None:
    rng = random.Random(0)
    alphabet = [b"\n", b'"', b"{", b"}", b"text", b":", b",", b"#", b"-", b"`", b"\xff", b" "]
    noise = [b"".join(rng.choices(alphabet, k=40)) for _ in range(300)]

    outcomes = {type(outcome(content, form)) for content in noise}

    assert outcomes <= {list, ReadingError}


def outcome(content: bytes, form: str) -> object:
    try:
        return read("-", stdin=content, format=form)
    except ReadingError as error:
        return error


# Flaws


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param(
            "x.jsonl",
            '{"text": "a"}\n{"text": oops}\n',
            r"x\.jsonl:2: not JSON: Expecting value at column 10.*one JSON object on each line",
            id="not JSON",
        ),
        pytest.param(
            "x.jsonl",
            '{"text": "a"}\n{"text": "b", "n": NaN}',
            r"x\.jsonl:2: not JSON: NaN is no JSON number, write null",
            id="a number that only Python knows",
        ),
        pytest.param("x.jsonl", "[1, 2]", r"x\.jsonl:1: found a list.*jq -c", id="a JSON list"),
        pytest.param(
            "x.json", '[\n"a",\n3\n]', r"x\.json:2: found an int", id="a number in a long list"
        ),
        pytest.param("x.json", '["a", 3]', r"x\.json:2: found an int", id="a number in a list"),
        pytest.param("x.json", "[1, 2]", r"x\.json:1: found an int.*list of", id="only numbers"),
        pytest.param("x.json", "[[], 2]", r"x\.json:1: found a list", id="lists in a list"),
        pytest.param("x.json", "[1, 2", r"x\.json:1: not JSON", id="half a list of numbers"),
        pytest.param("x.json", "7", r"x\.json:1: found an int", id="a lone number"),
        pytest.param("x.json", "hello", r"x\.json:1: not JSON.*--format text", id="prose"),
        pytest.param("x.json", '["a"\n"b"]', r"x\.json:2: not JSON", id="a broken list"),
        pytest.param("x.jsonl", "[" * 99_999, r"x\.jsonl:1: not JSON", id="deeply nested JSON"),
        pytest.param(
            "x.jsonl",
            '{"question": "a", "n": 1}',
            r"x\.jsonl:1: no text: looked for text, content.*found question, n.*--field",
            id="no field with a usual name",
        ),
        pytest.param(
            "x.jsonl",
            '{"text": null}',
            r"x\.jsonl:1: text is null, expected a text",
            id="null",
        ),
        pytest.param(
            "x.jsonl", '\n{"text": "\\ud800"}', r"x\.jsonl:2: .*lone surrogate", id="bad Unicode"
        ),
        pytest.param(
            "x.csv", "id,text\n1,a\n2,b,c\n", r"x\.csv:3: 3 columns, expected 2", id="a long row"
        ),
        pytest.param("x.csv", "id,text\n1\n", r"x\.csv:2: 1 columns", id="a short row"),
        pytest.param(
            "x.csv",
            'id,text\n1,a\n2,"b\n3,c\n',
            r"x\.csv:3: not CSV: .*Is a quote missing",
            id="a quote that never ends",
        ),
        pytest.param("x.csv", "a,b\n1,2\n", r"x\.csv:2: no text.*found a, b", id="no text column"),
        pytest.param(
            "x.txt",
            b"fine\n\xe4h\n",
            r"x\.txt:2: not UTF-8 at byte 1.*iconv -f LATIN1",
            id="another encoding",
        ),
        pytest.param("x.txt", "fine".encode("utf-16"), r"x\.txt:1: .*iconv -f UTF-16", id="UTF-16"),
        pytest.param("x.txt", b"a\n\0\n", r"x\.txt:2: .*zero byte\. Extract", id="binary"),
        pytest.param(
            "x.bin",
            b"a\n\xff\x01\n",
            r"x\.bin:2: not a text file: it holds the byte 0x01\. Extract its text first",
            id="bytes",
        ),
        pytest.param(
            "x.pdf", b"%PDF-1.7\n%\xe2\xe3\n", r"x\.pdf is a PDF file, .*pdftotext FILE", id="a PDF"
        ),
        pytest.param("x.docx", b"PK\3\4\x14\0", r"x\.docx is an archive, as \.docx", id="Office"),
        pytest.param("x.txt.gz", b"\x1f\x8b\x08\n", r"is compressed, .*gunzip FILE", id="gzip"),
        pytest.param(
            "x.txt",
            b"SQLite format 3\0\n",
            r"x\.txt is a database, .*colbert-rag search",
            id="index",
        ),
    ],
)
def test_a_flaw_is_named_with_its_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = write(tmp_path, name, content)

    with pytest.raises(ReadingError, match=message):
        read(path)


def test_a_field_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    path = write(tmp_path, "x.jsonl", '{"text": "a"}')

    with pytest.raises(ReadingError, match=r"x\.jsonl:1: no field 'answer'\. Found: text"):
        read(path, text_field="answer")


def test_a_path_that_does_not_exist_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    good = write(tmp_path, "good.txt", "a")

    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_documents([str(good), "nowhere.txt"], ReadingOptions(), stdin=io.BytesIO())


def test_a_folder_without_anything_to_read_says_what_would_be_read(tmp_path: Path) -> None:
    write(tmp_path, "photo.png", "x")

    with pytest.raises(ReadingError, match=r"holds nothing to read.*\.csv, \.json, \.jsonl"):
        read(tmp_path)


def test_a_reading_error_is_one_of_ours_and_a_value_error() -> None:
    assert issubclass(ReadingError, ColBERTRagError)
    assert issubclass(ReadingError, ValueError)


# Folders that somebody else has filled


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
def test_a_folder_is_read_without_its_special_files_and_links_out_of_it(tmp_path: Path) -> None:
    write(tmp_path, "secret.txt", "secret")
    write(tmp_path, "folder/a.txt", "mars")
    (tmp_path / "folder" / "b.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "folder" / "c.txt").symlink_to("a.txt")
    (tmp_path / "folder" / "d.txt").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "folder" / "e.txt")
    skipped: list[str] = []

    assert texts(tmp_path / "folder", skipped=skipped.append) == ["mars", "mars"]

    out_of, special = skipped
    assert out_of.startswith("1 left out, leading out of the folder, which --follow-links reads: ")
    assert out_of.endswith("b.txt")
    assert special.startswith("2 left out, not regular files: ")
    assert "d.txt" in special
    assert special.endswith("e.txt")


def test_what_is_left_out_is_counted_and_the_first_are_named(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "mars")
    for number in range(1200):
        write(tmp_path, f"{number:04}.pdf", b"")
    skipped: list[str] = []

    assert texts(tmp_path, skipped=skipped.append) == ["mars"]

    names = ", ".join(str(tmp_path / f"000{number}.pdf") for number in range(3))
    assert skipped == [f"1,200 left out, not of a kind that is read: {names} and 1,197 more"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
def test_links_in_a_circle_and_sockets_are_left_out(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, "a.txt", "mars")
    (tmp_path / "b.txt").symlink_to("c.txt")
    (tmp_path / "c.txt").symlink_to("b.txt")
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("d.txt")

        for follow in (False, True):
            skipped: list[str] = []
            assert texts(".", skipped=skipped.append, follow_links=follow) == ["mars"]
            assert skipped == ["3 left out, not regular files: b.txt, c.txt, d.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
def test_a_pipe_that_is_named_is_read(tmp_path: Path) -> None:
    """As of `colbert-rag rerank QUERY <(command)`."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("mars\n\nvenus",))
    writer.start()

    assert texts(tmp_path / "pipe") == ["mars", "venus"]
    writer.join()


# Streams without an end


@pytest.mark.parametrize("options", [{}, {"split": "file"}, {"format": "json"}, {"format": "csv"}])
@pytest.mark.parametrize("line", [b"x" * 4096, b"word\n", b"\n", b"[[[", b'"text",'])
def test_what_never_ends_is_refused(line: bytes, options: dict[str, Any], monkeypatch) -> None:
    monkeypatch.setattr(files, "LARGEST", 10**5)
    endless = Endless(line)

    with pytest.raises(ReadingError, match="stdin:"):
        for _ in read_documents(["-"], ReadingOptions(**options), stdin=io.BufferedReader(endless)):
            pass

    assert endless.given < 2 * 10**5


class Endless(io.RawIOBase):
    """A stream that says the same for ever."""

    def __init__(self, line: bytes) -> None:
        self.given = 0
        self._line = line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = (self._line * (len(buffer) // len(self._line) + 1))[: len(buffer)]
        buffer[:] = piece
        self.given += len(piece)
        return len(piece)


def test_the_limit_is_that_of_one_document(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(files, "LARGEST", 1000)
    path = write(tmp_path, "x.txt", f"{'mars ' * 180}\n\n" * 50)

    assert len(texts(path)) == 50


def test_a_file_that_grows_is_read_as_far_as_it_was(tmp_path: Path) -> None:
    """As of `colbert-rag rerank QUERY . --json >> found.jsonl`."""
    path = write(tmp_path, "found.jsonl", '{"text": "mars"}\n' * 3)
    found = []
    for document in read_documents([str(path)], ReadingOptions(), stdin=io.BytesIO()):
        found.append(document)
        assert len(found) < 10
        with path.open("a") as stream:
            stream.write('{"text": "mars"}\n' * 1000)

    assert len(found) == 3


def test_links_out_of_a_folder_are_followed_on_request(tmp_path: Path) -> None:
    write(tmp_path, "other.txt", "venus")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.txt").symlink_to(tmp_path / "other.txt")

    assert texts(tmp_path / "folder", follow_links=True) == ["venus"]


def test_folders_behind_links_are_read_on_request_and_never_twice(tmp_path: Path) -> None:
    write(tmp_path, "outside/c.txt", "c")
    write(tmp_path, "folder/sub/b.txt", "b")
    (tmp_path / "folder" / "again").symlink_to("sub")
    (tmp_path / "folder" / "other").symlink_to(tmp_path / "outside")
    (tmp_path / "folder" / "round").symlink_to(tmp_path)
    skipped: list[str] = []

    assert texts(tmp_path / "folder", skipped=skipped.append) == ["b"]
    names = f"{tmp_path / 'folder' / 'other'}, {tmp_path / 'folder' / 'round'}"
    assert skipped == [
        f"2 left out, leading out of the folder, which --follow-links reads: {names}"
    ]
    assert texts(tmp_path / "folder", follow_links=True) == ["c", "b"]
