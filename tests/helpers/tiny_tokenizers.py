"""Real, tiny tokenizers, one per family, made in process and always the same."""

from __future__ import annotations

import functools
import string
from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

WORDS = (
    "which planet is known as the red mars venus saturn jupiter rings storms what here for its "
    "famous sometimes mistaken and a colour search query document istanbul zurich vu"
).split()
# Left out so that some punctuation is unknown, as it is in many published vocabularies.
UNKNOWN_SYMBOLS = "~`"
SYMBOLS = [symbol for symbol in string.punctuation if symbol not in UNKNOWN_SYMBOLS]
LETTERS = [*string.ascii_lowercase, *string.digits, *"αβγδεζηθικλμνξοπρσςτυφχψω"]
IDEOGRAPHS = list("東京行星は")


@dataclass(frozen=True)
class TinyTokenizer:
    """A tokenizer as it is saved: its rules and the names of its special tokens."""

    rules: Tokenizer
    special: dict[str, str]

    def id(self, name: str) -> int:
        """The id of the special token `name`, such as `mask_token`."""
        found = self.rules.token_to_id(self.special[name])
        assert found is not None, self.special[name]
        return found


def wordpiece(*, lowercase: bool = True) -> TinyTokenizer:
    """BERT's: lower-casing, accents stripped, ideographs apart, `[unused0]` at id 1."""
    vocabulary = "[PAD] [unused0] [unused1] [unused2] [UNK] [CLS] [SEP] [MASK]".split()
    vocabulary += [*SYMBOLS, *LETTERS, *IDEOGRAPHS]
    vocabulary += [*(f"##{piece}" for piece in [*LETTERS, "et", "ing"]), *WORDS]
    ids = {token: position for position, token in enumerate(dict.fromkeys(vocabulary))}
    rules = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    rules.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase)
    rules.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rules.decoder = decoders.WordPiece()
    special = {
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
    }
    rules.add_special_tokens(list(special.values()))
    rules.post_processor = _template(rules, "[CLS]", "[SEP]")
    return TinyTokenizer(rules, special)


def unigram() -> TinyTokenizer:
    """XLM-RoBERTa's: `<pad>` is id 1, `<mask>` the last entry, some `▁!` but not all."""
    pieces = [(f"▁{word}", -3.0) for word in WORDS]
    pieces += [(f"▁{symbol}", -4.0) for symbol in SYMBOLS[::2]]
    pieces += [("▁", -5.0), ("et", -5.5), ("ing", -5.5)]
    pieces += [(symbol, -6.0) for symbol in SYMBOLS]
    pieces += [(letter, -6.5) for letter in [*LETTERS, *string.ascii_uppercase, *IDEOGRAPHS]]
    reserved = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    rules = Tokenizer(models.Unigram([*reserved, *pieces], unk_id=3, byte_fallback=False))
    rules.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    rules.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
        ]
    )
    rules.decoder = decoders.Metaspace()
    special = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    rules.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)])
    rules.post_processor = _template(rules, "<s>", "</s>")
    return TinyTokenizer(rules, special)


def byte_bpe(
    special: dict[str, str], *, first: str | None, last: str | None, reserved: tuple[str, ...] = ()
) -> TinyTokenizer:
    """GPT-2's byte-level BPE, cased, sensitive to a leading space."""
    rules = Tokenizer(models.BPE())
    rules.normalizer = normalizers.NFC()
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    tokens = [
        AddedToken(token, lstrip=token == special.get("mask_token"), special=True)
        for token in dict.fromkeys([*reserved, *special.values()])
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        min_frequency=1,
        show_progress=False,
        special_tokens=tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    corpus = [" ".join(WORDS)] * 3 + WORDS + [" ".join(WORDS).title()]
    rules.train_from_iterator(corpus, trainer)
    if first is not None:
        rules.post_processor = _template(rules, first, last)
    return TinyTokenizer(rules, special)


def modernbert() -> TinyTokenizer:
    """ModernBERT's, with the `[unused0]` entries of the published vocabulary."""
    special = {
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
    }
    tokenizer = byte_bpe(special, first="[CLS]", last="[SEP]")
    tokenizer.rules.add_tokens([AddedToken(f"[unused{i}]", special=False) for i in range(3)])
    return tokenizer


def roberta() -> TinyTokenizer:
    """RoBERTa's."""
    special = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    order = ("<s>", "<pad>", "</s>", "<unk>")
    tokenizer = byte_bpe(special, first="<s>", last="</s>", reserved=order)
    tokenizer.rules.add_tokens([AddedToken(f"[unused{i}]", special=False) for i in range(3)])
    return tokenizer


def eurobert() -> TinyTokenizer:
    """EuroBERT's: Llama 3 names and a mask token."""
    special = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "pad_token": "<|pad|>",
        "mask_token": "<|mask|>",
    }
    return byte_bpe(special, first="<|begin_of_text|>", last="<|end_of_text|>")


def lfm2() -> TinyTokenizer:
    """LFM2's: nothing is appended, and there is no mask token."""
    special = {
        "pad_token": "<|pad|>",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|im_end|>",
    }
    order = ("<|pad|>", "<|startoftext|>", "<|endoftext|>")
    return byte_bpe(special, first="<|startoftext|>", last=None, reserved=order)


def qwen3() -> TinyTokenizer:
    """pplx-embed-v1-late's: no token in front, none behind, and a mask token."""
    special = {
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "mask_token": "<|mask|>",
    }
    return byte_bpe(special, first=None, last=None)


def _template(rules: Tokenizer, first: str, last: str | None) -> processors.TemplateProcessing:
    parts = [first, "$A"] + ([last] if last else [])
    names = [name for name in (first, last) if name]
    return processors.TemplateProcessing(
        single=" ".join(parts),
        special_tokens=[(name, rules.token_to_id(name)) for name in names],
    )


TOKENIZERS: dict[str, Callable[[], TinyTokenizer]] = {
    "wordpiece": wordpiece,
    "wordpiece-cased": functools.partial(wordpiece, lowercase=False),
    "unigram": unigram,
    "modernbert": modernbert,
    "roberta": roberta,
    "eurobert": eurobert,
    "lfm2": lfm2,
    "qwen3": qwen3,
}
