"""BGE-M3's token vectors and scores: a plain class of transformers and one explicit linear layer.

Follows FlagEmbedding's `_colbert_embedding` and `compute_colbert_score`
(FlagEmbedding/finetune/embedder/encoder_only/m3/modeling.py, @7ed43d6) on one text at a time: the
row of `<s>` is dropped, the others are projected and normalised; a score is the mean over the
query's rows.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.oracle import Encoded, Tokens, load_tokenizer, plain_body


class M3Oracle:
    """Queries and documents are encoded alike: nothing is inserted, filled up or skipped."""

    def __init__(self, folder: Path) -> None:
        self.body = plain_body(folder, "XLMRobertaModel")
        self.tokenizer = load_tokenizer(folder)
        limit = json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"]
        positions = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
        # XLM-RoBERTa counts positions from 2.
        self.tokenizer.enable_truncation(min(limit, positions - 2))
        head = _head(folder)
        self.weight, self.bias = head["weight"].float(), head["bias"].float()

    @torch.inference_mode()
    def query(self, text: str) -> Encoded:
        """All rows but the first."""
        ids = self.tokenizer.encode(text).ids
        hidden = self.body(ids, [True] * len(ids))
        rows = F.normalize(F.linear(hidden[1:], self.weight, self.bias), dim=-1)
        return Encoded(Tokens(ids, [True] * len(ids), [False] + [True] * (len(ids) - 1)), rows)

    document = query

    def score(self, query: str, document: str) -> float:
        """The published score: the mean of the maxima, from -1 to 1."""
        rows = self.query(query).rows.double() @ self.document(document).rows.double().T
        return float(rows.amax(dim=1).mean())


def _head(folder: Path) -> dict[str, Tensor]:
    if (folder / "colbert_linear.pt").exists():
        return dict(torch.load(folder / "colbert_linear.pt", weights_only=True))
    return load_file(folder / "colbert_linear.safetensors")
