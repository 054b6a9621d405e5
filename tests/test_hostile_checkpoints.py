"""Made-up and damaged checkpoints: refused with words, soon, and without taking the machine."""

from __future__ import annotations

import asyncio
import builtins
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import transformers

from colbert_rag import ColBERT, Settings, open_checkpoint
from colbert_rag.backbone.fields import Fields
from colbert_rag.backbone.table import find_backbone
from colbert_rag.checkpoint.border import PASSES, border
from colbert_rag.errors import CheckpointError, MetadataError
from tests.fuzz.checkpoint import CORPUS
from tests.helpers.answers import open_exactly
from tests.helpers.families import FAMILIES
from tests.helpers.tiny import edit_json

Copy = Callable[[str], Path]
SECONDS, MEBIBYTES = 2.0, 200

# One process for all of them, since it must have imported everything before anything is measured.
MEASURED = """
import json, pathlib, sys, tempfile, time
from tests.fuzz import checkpoint

STATUS, REFS = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")

def peak():
    return int(STATUS.read_text().split("VmHWM:")[1].split()[0]) if STATUS.exists() else 0

checkpoint.prepare(sorted({case.base for case in checkpoint.CORPUS}))
for number, case in enumerate(checkpoint.CORPUS):
    for attempt in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            if REFS.exists():
                REFS.write_text("5")
            before, start = peak(), time.process_time()
            error = ""
            try:
                checkpoint.run(case, pathlib.Path(folder))
            except BaseException as raised:
                error = f"{type(raised).__name__}: {raised}"[:300]
            outcome = [number, time.process_time() - start, (peak() - before) / 1024, error]
        if not error and outcome[1] < 2:
            break
    print(json.dumps(outcome), flush=True)
"""


def test_no_kept_checkpoint_takes_long_or_much_or_raises_what_it_may_not() -> None:
    """Found by hand or by `python -m tests.fuzz --target checkpoint`, each a defect once."""
    run = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True)

    assert run.returncode == 0, run.stderr[-500:]
    outcomes = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(outcomes) == len(CORPUS)
    wrong = [
        (str(CORPUS[number])[:200], seconds, mebibytes, error)
        for number, seconds, mebibytes, error in outcomes
        if error or seconds > SECONDS or mebibytes > MEBIBYTES
    ]
    assert not wrong


# The border


def _kinds() -> list[type[BaseException]]:
    found = [kind for kind in vars(builtins).values() if isinstance(kind, type)]
    return [kind for kind in found if issubclass(kind, BaseException)]


class Panic(BaseException):
    """As a library in Rust raises it."""


@pytest.mark.parametrize("kind", [*_kinds(), Panic, asyncio.CancelledError])
def test_no_other_exception_passes_the_border(kind: type[BaseException]) -> None:
    """Of Python's own kinds: all of them."""
    arguments: tuple[object, ...] = ("found this",)
    if kind in (UnicodeDecodeError, UnicodeEncodeError):
        arguments = ("utf-8", b"x" if kind is UnicodeDecodeError else "x", 0, 1, "found this")
    elif kind is UnicodeTranslateError:
        arguments = ("x", 0, 1, "found this")
    elif kind.__name__.endswith("ExceptionGroup"):
        arguments = ("found this", [ValueError()])
    error = kind(*arguments)
    passes = isinstance(error, PASSES)

    with pytest.raises(kind if passes else CheckpointError) as caught, border("here/model"):
        raise error

    if not passes:
        assert type(error).__name__ in str(caught.value)
        assert "here/model" in str(caught.value)
        assert "found this" in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        "checkpoint.checkpoint.locate",
        "checkpoint.checkpoint.read_modules",
        "checkpoint.checkpoint.load_vocabulary",
        "hosting._compared",
        "hosting.load_weights",
        "text_encoder.TextTokenizer",
    ],
)
def test_opening_lies_inside_the_border(
    place: str, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("stanford-bert")

    def explode(*args: object, **kwargs: object) -> None:
        raise NotImplementedError("not this")

    monkeypatch.setattr(f"colbert_rag.{place}", explode)

    with pytest.raises(CheckpointError, match="NotImplementedError: not this"):
        open_exactly(folder)


# config.json


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("return_dict", False),
        ("chunk_size_feed_forward", 7),
        ("output_attentions", True),
        ("output_hidden_states", True),
        ("num_labels", 10**7),
        ("id2label", {"a": 1}),
        ("dtype", []),
        ("torch_dtype", "float8_e4m3fn"),
        ("hidden_dropout_prob", "much"),
        ("initializer_range", -5),
        ("pruned_heads", {"0": [0, 1]}),
        ("attn_implementation", "flash_attention_2"),
        ("per_layer_config", {"0": {"hidden_size": 3}}),
    ],
)
@pytest.mark.parametrize("name", ["stanford-bert", "pylate-modernbert"])
def test_what_an_encoder_does_not_use_changes_nothing(
    name: str, key: str, value: object, copy_of: Copy, colbert: Callable[..., ColBERT]
) -> None:
    folder = copy_of(name)
    edit_json(folder / "config.json", **{key: value})

    found = open_exactly(folder).score("mars", ["venus", "a red planet"])

    assert found == colbert(name).score("mars", ["venus", "a red planet"])


OLDER = frozenset(
    "rope_theta rope_scaling rope_parameters partial_rotary_factor head_dim num_key_value_heads "
    "global_attn_every_n_layers global_rope_theta local_rope_theta block_ff_dim rotary_emb_base "
    "hidden_act type_vocab_size layer_norm_eps intermediate_size hidden_size num_hidden_layers "
    "num_attention_heads sliding_window".split()
)
"""Keys that a class of transformers reads without a field of that name, or that older ones had."""

UNUSED = (
    "dropout initializer use_cache tie_word classifier decoder_bias is_decoder summary_ "
    "add_cross_attention deterministic_flash sparse_pred pretraining_tp problem_type "
    "return_dict output_ chunk_size is_encoder_decoder id2label label2id dtype architectures "
    "transformers_version num_labels _token_id sinusoidal_pos_embds max_window_layers"
).split()
"""Parts of the names of fields that serve training, other tasks, or the shape of an answer; and
special ids, which are the tokenizer's. Windows of Qwen3 are refused, whatever their sizes."""


class Read(dict[str, object]):
    """A `config.json` that keeps which of its keys were asked for."""

    def __init__(self, values: Mapping[str, object]) -> None:
        super().__init__(values)
        self.keys_read: set[str] = set()

    def get(self, key: str, default: object = None) -> object:
        self.keys_read.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> object:
        self.keys_read.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.keys_read.add(str(key))
        return super().__contains__(key)


@pytest.mark.parametrize("family", FAMILIES)
def test_of_the_keys_that_transformers_knows_all_that_matter_are_read(family: str) -> None:
    """By the fields of its own classes; a misspelt key would never be read, without a word."""
    kind = getattr(transformers, FAMILIES[family].config)
    model_type = "xlm-roberta" if family == "jina" else kind.model_type
    said = {
        "model_type": model_type,
        "architectures": [FAMILIES[family].model],
        "use_bidirectional_attention": True,
    }
    row = find_backbone(said, ["mixer.Wqkv"] if family == "jina" else [])
    config = Read({"vocab_size": 90, "type_vocab_size": 2, **FAMILIES[family].settings})
    if family.startswith("lfm2"):
        config["block_auto_adjust_ff_dim"] = True  # else two others decide nothing

    assert row.shape is not None
    row.shape(Fields(config))

    known = {field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map)
    assert config.keys_read <= known | OLDER | {"pad_token_id"}
    left = known - config.keys_read - {"rope_parameters"}
    left -= {"sliding_window"} & left if "use_sliding_window" in config.keys_read else set()
    assert not [name for name in left if not any(part in name for part in (*UNUSED, "_name_or"))]


def test_a_decoder_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    edit_json(folder / "config.json", is_decoder=True)

    with pytest.raises(CheckpointError, match=r"is_decoder=True: a decoder"):
        open_exactly(folder)


# Sizes and kinds of files


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.txt"])
def test_a_vocabulary_of_absurd_size_is_refused(file: str, copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    (folder / "tokenizer.json").unlink()
    (folder / file).touch()
    os.truncate(folder / file, 65 * 2**20)

    with pytest.raises(MetadataError, match=rf"{file}.*68,157,440 bytes"):
        open_exactly(folder)


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="there is no /proc")
def test_a_file_that_is_longer_than_it_says_is_not_taken_in(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    (folder / "artifact.metadata").unlink()
    (folder / "artifact.metadata").symlink_to("/proc/version")

    with pytest.raises(MetadataError, match=r"artifact\.metadata should have 0 bytes"):
        open_exactly(folder)


@pytest.mark.parametrize("name", ["~nobody-of-that-name", "x" * 300, "a\0b", "\ud800", "x/" * 3000])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError):
        open_checkpoint(Settings.normalised(name))
