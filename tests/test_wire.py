"""What client and server agree on."""

from __future__ import annotations

import base64
import struct
import subprocess
import sys

import numpy as np
import pytest

from colbert_rag.remote.wire import error_body, error_message, pack_rows, unpack_rows


def test_vectors_travel_as_little_endian_float32_row_after_row() -> None:
    rows = np.array([[1.0, -2.5], [0.25, 3.0]], dtype=np.float32)

    assert base64.b64decode(pack_rows(rows)) == struct.pack("<4f", 1.0, -2.5, 0.25, 3.0)


def test_vectors_come_back_as_they_were() -> None:
    rows = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)

    back = unpack_rows(pack_rows(rows), 3)

    assert back.tobytes() == rows.tobytes()
    assert back.flags.writeable


@pytest.mark.parametrize(
    ("text", "dim", "message"), [("AAAA", 2, "3 bytes"), ("%%%%", 2, "not base64")]
)
def test_what_are_no_vectors_is_refused(text: str, dim: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack_rows(text, dim)


def test_an_error_reads_the_same_in_all_three_shapes() -> None:
    body = error_body("no", kind="invalid_request_error", code="bad", param="query")

    assert body["error"] == {
        "message": "no",
        "type": "invalid_request_error",
        "code": "bad",
        "param": "query",
    }
    shapes = [body, {"error": body["error"]}, {"message": "no"}, {"detail": "no"}, {"error": "no"}]
    assert [error_message(shape) for shape in shapes] == ["no"] * 5
    assert error_message([]) is error_message({"detail": [{"msg": "x"}]}) is None


def test_it_needs_no_torch_and_no_pydantic() -> None:
    code = (
        "import sys, colbert_rag.remote.wire; "
        "sys.exit(bool({'torch', 'pydantic', 'fastapi'} & sys.modules.keys()))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
