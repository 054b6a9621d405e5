"""Independent references: what a checkpoint's scores are, without a line of the package.

* `naive_maxsim` is the definition of late interaction, as loops.
* `PlainOracle` runs a class of transformers and explicit linear layers on one text at a time.
  It follows Stanford's `query_tokenization.py` and `doc_tokenization.py` (ColBERT @501c29d) and
  PyLate's `models/colbert.py` (1.6.0); truncation and padding are the `tokenizers` library's.
* `SentenceTransformersOracle` is sentence-transformers 6.2's `MultiVectorEncoder`.
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from tokenizers import BertWordPieceTokenizer, Tokenizer
from torch import Tensor

from tests.helpers.families import FAMILIES
from tests.helpers.tiny import Spec

# Reports of what was loaded, and bars; what matters of them is asserted in the tests.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

Body = Callable[[list[int], list[bool]], Tensor]

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.nn.modules.linear.Identity": lambda x: x,
    "torch.nn.modules.activation.GELU": F.gelu,
}


@dataclass(frozen=True)
class Tokens:
    """One tokenised text."""

    ids: list[int]
    attention: list[bool]
    scoring: list[bool]


@dataclass(frozen=True)
class Encoded:
    """One encoded text: its tokens, and the vectors of those that are scored, `(rows, dim)`."""

    tokens: Tokens
    rows: Tensor


class Oracle(Protocol):
    """Anything that says what a text's tokens and vectors are."""

    def query(self, text: str) -> Encoded: ...
    def document(self, text: str) -> Encoded: ...


def naive_maxsim(query: Tensor, document: Tensor) -> float:
    """The sum over query rows of the best dot product with a document row."""
    total = 0.0
    for query_row in query.tolist():
        best = -math.inf
        for document_row in document.tolist():
            products = (q * d for q, d in zip(query_row, document_row, strict=True))
            best = max(best, math.fsum(products))
        total += best
    return total


def best_sum(query: Tensor, document: Tensor) -> float:
    """The same in one product, in float64, for the many pairs where loops would be slow."""
    return (query.double() @ document.double().T).amax(dim=1).sum().item()


def score(oracle: Oracle, query: str, documents: Sequence[str]) -> list[float]:
    """Score documents with an oracle's own vectors."""
    rows = oracle.query(query).rows
    return [best_sum(rows, oracle.document(text).rows) for text in documents]


# Plain transformers


@dataclass(frozen=True)
class Layer:
    """`activation(linear(x))`, plus the input or its projection when `residual` says so."""

    weight: Tensor
    bias: Tensor | None = None
    activation: Callable[[Tensor], Tensor] = lambda x: x
    residual: Tensor | bool = False

    def __call__(self, rows: Tensor) -> Tensor:
        """Apply the layer to `(tokens, width)`."""
        out = self.activation(F.linear(rows, self.weight, self.bias))
        if isinstance(self.residual, Tensor):
            return out + F.linear(rows, self.residual)
        return out + rows if self.residual else out


@dataclass(frozen=True)
class Recipe:
    """How texts become tokens: written out in a test, or read from `artifact.metadata`."""

    query_marker: int | None
    document_marker: int | None
    query_length: int
    document_length: int
    expansion: int | None = None
    attend: bool = False
    skip: frozenset[int] = frozenset()
    query_prompt: str = ""
    document_prompt: str = ""
    strip: bool = False
    lower: bool = False
    blank: int | None = None  # Stanford compares ids with the padding id, wherever they come from


class PlainOracle:
    """One text at a time through a plain class of transformers, linear layers and a norm."""

    def __init__(
        self, body: Body, tokenizer: Tokenizer, recipe: Recipe, layers: Sequence[Layer]
    ) -> None:
        self.body = body
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.layers = layers

    def query(self, text: str) -> Encoded:
        """Marker at position 1, then `[MASK]` up to the length when the query is expanded."""
        recipe = self.recipe
        ids = self._ids(recipe.query_prompt + text, recipe.query_marker, recipe.query_length)
        real = len(ids)
        if recipe.expansion is not None:
            ids = [recipe.expansion if token == recipe.blank else token for token in ids]
            ids += [recipe.expansion] * (recipe.query_length - real)
        attention = [position < real or recipe.attend for position in range(len(ids))]
        return self._encode(Tokens(ids, attention, [True] * len(ids)))

    def document(self, text: str) -> Encoded:
        """Marker at position 1; every real token counts unless it is on the skip-list."""
        recipe = self.recipe
        text = recipe.document_prompt + text
        ids = self._ids(text, recipe.document_marker, recipe.document_length)
        dropped = recipe.skip | {recipe.blank}
        return self._encode(Tokens(ids, [True] * len(ids), [token not in dropped for token in ids]))

    def _ids(self, text: str, marker: int | None, length: int) -> list[int]:
        text = text.strip() if self.recipe.strip else text
        text = text.lower() if self.recipe.lower else text
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(length if marker is None else length - 1)
        ids = list(self.tokenizer.encode(text).ids)
        return ids if marker is None else [*ids[:1], marker, *ids[1:]]

    @torch.inference_mode()
    def _encode(self, tokens: Tokens) -> Encoded:
        rows = self.body(tokens.ids, tokens.attention)
        for layer in self.layers:
            rows = layer(rows)
        return Encoded(tokens, F.normalize(rows[torch.tensor(tokens.scoring)], dim=-1))


def plain_body(folder: Path, model_class: str, *, prefix: str = "") -> Body:
    """A backbone from a checkpoint's tensors, strictly loaded, eager attention, float32."""
    config = json.loads((folder / "config.json").read_text())
    cls = getattr(transformers, model_class)
    config = cls.config_class.from_dict(config, attn_implementation="eager")
    kinds = ("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel", "XmodModel")
    options = {"add_pooling_layer": False} if model_class in kinds else {}
    model = cls(config, **options).eval()
    dropped = ("pooler.", "linear.", "embeddings.position_ids")
    tensors = {
        _new_name(name.removeprefix(prefix)): tensor.float()
        for name, tensor in load_tensors(folder).items()
        if not name.removeprefix(prefix).startswith(dropped)
    }
    model.load_state_dict(tensors, strict=True)

    def run(ids: list[int], attention: list[bool]) -> Tensor:
        inputs = torch.tensor([ids])
        output = model(input_ids=inputs, attention_mask=torch.tensor([attention]).long())
        return output.last_hidden_state[0]

    return run


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, whatever its shards."""
    if (folder / "pytorch_model.bin").exists():
        return torch.load(folder / "pytorch_model.bin", weights_only=True)
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(path)
    return tensors


def load_layer(
    folder: Path, activation: Callable[[Tensor], Tensor] = lambda x: x, *, residual: bool = False
) -> Layer:
    """One saved Dense module."""
    tensors = {name: tensor.float() for name, tensor in load_tensors(folder).items()}
    return Layer(
        tensors["linear.weight"],
        tensors.get("linear.bias"),
        activation,
        tensors.get("residual.weight", residual),
    )


def stanford_oracle(
    folder: Path, model_class: str, *, prefix: str = "", body: Body | None = None, **changes: Any
) -> PlainOracle:
    """Stanford's ColBERT on an inline checkpoint; `changes` override fields of its recipe."""
    path = folder / "artifact.metadata"
    metadata = json.loads(path.read_text()) if path.exists() else {}
    tokenizer = load_tokenizer(folder)
    recipe = Recipe(
        query_marker=tokenizer.token_to_id(metadata.get("query_token_id", "[unused0]")),
        document_marker=tokenizer.token_to_id(metadata.get("doc_token_id", "[unused1]")),
        query_length=metadata.get("query_maxlen", 32),
        document_length=metadata.get("doc_maxlen", 220),
        expansion=special_id(folder, "mask_token", tokenizer),
        attend=metadata.get("attend_to_mask_tokens", False),
        skip=frozenset(
            stanford_skiplist(tokenizer, special_id(folder, "unk_token", tokenizer))
            if metadata.get("mask_punctuation", True)
            else ()
        ),
        blank=special_id(folder, "pad_token", tokenizer),
    )
    body = body or plain_body(folder, model_class, prefix=prefix)
    linear = load_tensors(folder)["linear.weight"].float()
    return PlainOracle(body, tokenizer, replace(recipe, **changes), [Layer(linear)])


def pylate_oracle(
    folder: Path,
    model_class: str,
    layers: Sequence[Layer],
    *,
    body_folder: str = "",
    body: Body | None = None,
    **changes: Any,
) -> PlainOracle:
    """PyLate on its own format, prompts applied; `changes` override fields of its recipe."""
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    inner = folder / body_folder
    lower = json.loads((inner / "sentence_bert_config.json").read_text())["do_lower_case"]
    tokenizer = load_tokenizer(inner)
    mask = special_id(inner, "mask_token", tokenizer)
    mask = special_id(inner, "eos_token", tokenizer) if mask is None else mask
    expands = settings.get("do_query_expansion", True)
    unknown = special_id(inner, "unk_token", tokenizer)
    recipe = Recipe(
        query_marker=tokenizer.token_to_id(settings["query_prefix"]),
        document_marker=tokenizer.token_to_id(settings["document_prefix"]),
        query_length=settings["query_length"],
        document_length=settings["document_length"],
        expansion=mask if expands else None,
        attend=settings["attend_to_expansion_tokens"] and expands,
        skip=frozenset(entry_skiplist(tokenizer, settings["skiplist_words"], unknown)),
        query_prompt=settings["prompts"]["query"],
        document_prompt=settings["prompts"]["document"],
        strip=True,
        lower=lower,
    )
    body = body or plain_body(inner, model_class)
    return PlainOracle(body, tokenizer, replace(recipe, **changes), layers)


def plain_oracle(spec: Spec, folder: Path) -> PlainOracle:
    """The reference of a tiny Stanford or PyLate checkpoint."""
    family = FAMILIES[spec.backbone]
    if spec.format == "stanford":
        prefix = family.prefix if spec.prefix is None else spec.prefix
        return stanford_oracle(folder, family.model, prefix=prefix)
    layers = [
        load_layer(folder / f"{position}_Dense", FUNCTIONS[head.activation], residual=head.residual)
        for position, head in enumerate(spec.heads, start=1)
    ]
    return pylate_oracle(folder, family.model, layers, body_folder=spec.folder)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The saved tokenizer without the truncation and padding that were saved with it."""
    if (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        vocabulary = str(folder / "vocab.txt")
        built = BertWordPieceTokenizer(vocabulary, lowercase=True)
        tokenizer = Tokenizer.from_str(built.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def special_id(folder: Path, name: str, tokenizer: Tokenizer) -> int | None:
    """The id of a special token, by its name in `tokenizer_config.json`."""
    token = json.loads((folder / "tokenizer_config.json").read_text()).get(name)
    return None if token is None else tokenizer.token_to_id(token)


def stanford_skiplist(tokenizer: Tokenizer, unknown: int | None) -> set[int]:
    """Stanford takes the first id of each encoded symbol; the unknown id is never among them."""
    encoded = [tokenizer.encode(symbol, add_special_tokens=False) for symbol in string.punctuation]
    return {encoding.ids[0] for encoding in encoded} - {unknown}


def entry_skiplist(tokenizer: Tokenizer, words: Sequence[str], unknown: int | None) -> set[int]:
    """PyLate and sentence-transformers take the entries of the vocabulary."""
    ids = (tokenizer.token_to_id(word) for word in words)
    return {token for token in ids if token is not None and token != unknown}


def _new_name(name: str) -> str:
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


# sentence-transformers


class SentenceTransformersOracle:
    """sentence-transformers 6.2's `MultiVectorEncoder`, one text at a time, float32."""

    def __init__(self, folder: Path) -> None:
        from sentence_transformers import MultiVectorEncoder

        self.model = MultiVectorEncoder(
            str(folder),
            device="cpu",
            local_files_only=True,
            model_kwargs={"dtype": torch.float32},
        )
        self.model.eval()

    def query(self, text: str) -> Encoded:
        """What `encode_query` makes of a text."""
        (features,) = self.model.encode_query([text], output_value=None, show_progress_bar=False)
        return self._encoded(text, "query", features)

    def document(self, text: str) -> Encoded:
        """What `encode_document` makes of a text."""
        (features,) = self.model.encode_document([text], output_value=None, show_progress_bar=False)
        return self._encoded(text, "document", features)

    def _encoded(self, text: str, task: str, features: dict[str, Tensor]) -> Encoded:
        # Its mask module has replaced the attention mask by the scoring mask.
        prompt = self.model.prompts.get(task)
        before = self.model.preprocess([text], prompt=prompt, task=task)
        scoring = features["attention_mask"].bool()
        tokens = Tokens(
            before["input_ids"][0].tolist(),
            before["attention_mask"][0].bool().tolist(),
            scoring.tolist(),
        )
        return Encoded(tokens, features["token_embeddings"][scoring])
