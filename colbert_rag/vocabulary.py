"""Loads a checkpoint's tokenizer into a state nobody changes afterwards.

A fast tokenizer keeps truncation and padding as state on one shared object; switching them for
every call gives silently wrong lengths when threads share a model (huggingface/tokenizers#537).
They are switched off here, once, and done by hand in `tokenizer.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from colbert_rag.checkpoint import Checkpoint
from colbert_rag.checkpoint.files import Folder, Section, join
from colbert_rag.errors import TokenizerError

BERT_SPECIALS = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}


ROLES = {
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
    "eos": ("</s>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>"),
    "pad": ("[PAD]", "<pad>", "<|pad|>"),
    "unk": ("[UNK]", "<unk>"),
}
"""What tokenizers call their special tokens, for those whose side files do not say."""


@dataclass(frozen=True, slots=True)
class Specials:
    """Ids of the special tokens that rules refer to; None where the vocabulary has none."""

    mask: int | None
    eos: int | None
    pad: int | None
    unk: int | None


def load_tokenizer(checkpoint: Checkpoint) -> tuple[Tokenizer, Specials]:
    """The checkpoint's tokenizer, without truncation and padding, with every token it names.

    Raises:
        TokenizerError: there is none, it is damaged, or its added tokens do not fit.
    """
    folder = Folder(checkpoint.folder)
    # With the backbone in 0_Transformer/, the tokenizer is there too, or else at the top.
    subs = [sub for sub in (checkpoint.body, "") if _has_tokenizer(folder, sub)]
    if not subs:
        raise TokenizerError(
            f"{checkpoint.folder / checkpoint.body} has neither tokenizer.json nor vocab.txt. "
            "Write one with transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    sub = subs[0]
    if folder.has(join(sub, "tokenizer.json")):
        tokenizer = _from_json(folder.path / join(sub, "tokenizer.json"))
    else:
        tokenizer = _from_vocabulary(folder, sub)
    # tokenizer.json carries the settings of whoever saved it: MiniLM's cuts and pads to 128.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _add_missing(tokenizer, folder, sub)
    return tokenizer, _specials(tokenizer, folder, sub)


def _specials(tokenizer: Tokenizer, folder: Folder, sub: str) -> Specials:
    """PyLate saves its padding token as the mask token, so roles are never told from padding."""
    found: dict[str, int | None] = {}
    for role, names in ROLES.items():
        stated = [
            _token_text(folder.read(join(sub, file)), f"{role}_token")
            for file in ("tokenizer_config.json", "special_tokens_map.json")
        ]
        ids = (tokenizer.token_to_id(name) for name in (*stated, *names) if name is not None)
        found[role] = next((number for number in ids if number is not None), None)
    return Specials(**found)


def _has_tokenizer(folder: Folder, sub: str) -> bool:
    return any(folder.has(join(sub, name)) for name in ("tokenizer.json", "vocab.txt"))


def _from_json(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises a bare Exception
        raise TokenizerError(f"{path} is not a readable tokenizer.json: {error}") from error


def _from_vocabulary(folder: Folder, sub: str) -> Tokenizer:
    """WordPiece from `vocab.txt`, as BERT's own tokenizer reads it.

    `BertTokenizerFast(vocab_file=...)` of transformers 5 silently returns five tokens instead.
    """
    text = (folder.path / join(sub, "vocab.txt")).read_text(encoding="utf-8")
    # Not splitlines(): it also splits at U+2028 and others, which multilingual vocabularies hold.
    lines = text.removesuffix("\n").split("\n")
    vocabulary = {token: index for index, token in enumerate(lines)}
    config = folder.read(join(sub, "tokenizer_config.json"))
    specials = {
        role: _token_text(config, f"{role}_token") or default
        for role, default in BERT_SPECIALS.items()
    }
    absent = [token for token in specials.values() if token not in vocabulary]
    if absent:
        raise TokenizerError(f"vocab.txt has no entry for the special tokens {absent}")
    tokenizer = Tokenizer(
        WordPiece(vocab=vocabulary, unk_token=specials["unk"], max_input_chars_per_word=100)
    )
    lowercase = config.get("do_lower_case", bool)
    chinese = config.get("tokenize_chinese_chars", bool)
    tokenizer.normalizer = BertNormalizer(
        lowercase=lowercase is not False,
        strip_accents=config.get("strip_accents", bool),
        handle_chinese_chars=chinese is not False,
    )
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials.values()])
    cls, sep = specials["cls"], specials["sep"]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    return tokenizer


def _token_text(config: Section, key: str) -> str | None:
    value = config.values.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _add_missing(tokenizer: Tokenizer, folder: Folder, sub: str) -> None:
    """Tokens that only the side files name, such as the markers of older PyLate saves."""
    added = folder.read(join(sub, "added_tokens.json")).values
    named = {number: text for text, number in added.items() if isinstance(number, int)}
    decoder = folder.read(join(sub, "tokenizer_config.json")).section("added_tokens_decoder")
    for number_text in decoder.values:
        entry = decoder.section(number_text)
        text_of = entry.get("content", str)
        if number_text.isdecimal() and text_of is not None:
            named[int(number_text)] = text_of
    for number in sorted(named):
        text = named[number]
        if tokenizer.token_to_id(text) is not None:
            continue
        tokenizer.add_tokens([AddedToken(text, normalized=False)])
        given = tokenizer.token_to_id(text)
        if given != number:
            raise TokenizerError(
                f"the tokenizer's side files give {text!r} the id {number}, but the next free id "
                f"is {given}. tokenizer.json belongs to another checkpoint"
            )
