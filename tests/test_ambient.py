"""What a caller has set in torch for his own purposes changes no score."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from colbert_rag import ColBERT
from tests.helpers.answers import open_exactly

QUERY = "which planet has rings?"
TEXTS = ["saturn has rings of ice", "", "venus is hot " * 90, "mars"]
MODELS = ["stanford-bert", "pylate-modernbert", "jina", "pylate-lfm2"]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


SETTINGS = [
    pytest.param(lambda: default_dtype(torch.bfloat16), id="default dtype bfloat16"),
    pytest.param(lambda: default_dtype(torch.float64), id="default dtype float64"),
    pytest.param(lambda: torch.autocast("cpu", dtype=torch.bfloat16), id="autocast"),
    # "meta" is the one device besides the CPU that every machine has; users set "cuda".
    pytest.param(lambda: torch.device("meta"), id="default device"),
    pytest.param(torch.no_grad, id="no_grad"),
    pytest.param(torch.inference_mode, id="inference_mode"),
]


def answers(model: ColBERT) -> tuple[list[float], list[int], list[list[float]]]:
    ranking = model.rank(QUERY, TEXTS)
    explanation = model.explain(QUERY, TEXTS[0])
    return (
        model.score(QUERY, TEXTS),
        [place.index for place in ranking],
        explanation.similarities.tolist(),
    )


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", MODELS)
def test_answers_do_not_change(
    name: str,
    setting: Callable[[], AbstractContextManager[object]],
    checkpoint: Callable[[str], object],
) -> None:
    options = {"document_cache": None, "long_documents": "windows", "document_length": 40}
    model = open_exactly(checkpoint(name), **options)
    expected = answers(model)

    with setting():
        used = answers(model)
    with setting():
        loaded = answers(open_exactly(checkpoint(name), **options))

    assert used == expected
    assert loaded == expected
