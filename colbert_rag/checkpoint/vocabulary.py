"""Loads a checkpoint's tokenizer, which nothing changes afterwards.

A fast tokenizer keeps truncation and padding as state on one shared object; switching them for
every call gives silently wrong lengths when threads share a model (huggingface/tokenizers#537).
They are switched off here, once, and `tokenizer.py` cuts and pads by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from colbert_rag.backbone.fields import MAX_NUMBER
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


MAX_TOKENIZER_BYTES = 64 * 2**20
"""The largest that is published with a text encoder, Gemma's, has 33 MiB."""

MAX_VOCABULARY_BYTES = 16 * 2**20
"""BERT's multilingual one has 1 MiB."""


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Vocabulary:
    """A checkpoint's tokenizer, and the special tokens that the rules for text refer to.

    Attributes:
        tokenizer: Without truncation and padding; nothing changes it after it was loaded.
        mask: Id of the mask token; None where the vocabulary has none, as for the others.
        eos: Id of the token that ends a text.
        pad: Id of the padding token.
        unk: Id of the token for unknown text.
        size: Rows that an embedding table needs for it: the largest id plus one.
    """

    tokenizer: Tokenizer = field(repr=False)
    mask: int | None
    eos: int | None
    pad: int | None
    unk: int | None
    size: int

    def lacks(self, token: str) -> bool:
        """Whether a token, if any, is not one entry; the empty string is no token."""
        return bool(token) and self.tokenizer.token_to_id(token) is None


def load_vocabulary(folder: Folder, body: str) -> Vocabulary:
    """The tokenizer of a checkpoint, with every token that its side files name.

    Args:
        folder: The checkpoint.
        body: Sub-folder of the backbone, "" for the checkpoint itself.

    Raises:
        TokenizerError: there is none, it is damaged, or its added tokens do not fit.
    """
    # With the backbone in 0_Transformer/, the tokenizer is there too, or else at the top.
    sub = next((sub for sub in (body, "") if _has_tokenizer(folder, sub)), None)
    if sub is None:
        raise TokenizerError(
            f"{folder.path / body} has neither tokenizer.json nor vocab.txt. Write one with "
            "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    if folder.has(join(sub, "tokenizer.json")):
        tokenizer = _from_json(folder, join(sub, "tokenizer.json"))
    else:
        tokenizer = _from_vocabulary(folder, sub)
    # tokenizer.json carries the settings of whoever saved it: MiniLM's cuts and pads to 128.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _add_missing(tokenizer, folder, sub)
    return Vocabulary(tokenizer=tokenizer, size=_size(tokenizer), **_roles(tokenizer, folder, sub))


def _size(tokenizer: Tokenizer) -> int:
    # Ids may leave gaps, so that the largest exceeds the number of entries; and what is put around
    # every text, here an empty one, need not be an entry at all.
    ids = (*tokenizer.get_vocab().values(), *tokenizer.encode("").ids)
    size = max(ids, default=-1) + 1
    if size > MAX_NUMBER:
        raise TokenizerError(
            f"the tokenizer has ids up to {size - 1:,}, expected less than {MAX_NUMBER:,}. Is this "
            "the file that was published?"
        )
    return size


def _roles(tokenizer: Tokenizer, folder: Folder, sub: str) -> dict[str, int | None]:
    """Ids of the special tokens by role, each found by its own name.

    Never told from padding: PyLate saves its padding token as the mask token.
    """
    found: dict[str, int | None] = {}
    for role, names in ROLES.items():
        stated = [
            _token_text(folder.read(join(sub, file)), f"{role}_token")
            for file in ("tokenizer_config.json", "special_tokens_map.json")
        ]
        ids = (tokenizer.token_to_id(name) for name in (*stated, *names) if name is not None)
        found[role] = next((number for number in ids if number is not None), None)
    return found


def _has_tokenizer(folder: Folder, sub: str) -> bool:
    return any(folder.has(join(sub, name)) for name in ("tokenizer.json", "vocab.txt"))


def _from_json(folder: Folder, file: str) -> Tokenizer:
    text = folder.read_text(file, MAX_TOKENIZER_BYTES)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the Rust side raises a bare Exception
        raise TokenizerError(f"{file} is not a readable tokenizer.json: {error}") from error


def _from_vocabulary(folder: Folder, sub: str) -> Tokenizer:
    """WordPiece from `vocab.txt`, as BERT's own tokenizer reads it.

    `BertTokenizerFast(vocab_file=...)` of transformers 5 silently returns five tokens instead.
    """
    text = folder.read_text(join(sub, "vocab.txt"), MAX_VOCABULARY_BYTES)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
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
    missing: dict[str, int] = {}
    for number in sorted(named):
        if tokenizer.token_to_id(named[number]) is None:
            missing.setdefault(named[number], number)
    # All at once: each call builds the search for added tokens anew.
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in missing])
    for text, number in missing.items():
        given = tokenizer.token_to_id(text)
        if given != number:
            raise TokenizerError(
                f"the tokenizer's side files give {text[:60]!r} the id {number}, but the next free "
                f"id is {given}. tokenizer.json belongs to another checkpoint"
            )
