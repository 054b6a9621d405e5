"""What the machine can do, measured, and how much of it bulk encoding reaches."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks import checkpoints, corpora, peers
from benchmarks.report import Plan, Table
from benchmarks.timing import Timing, interleave
from colbert_rag.device import computes_bfloat16

SHAPES = (
    # outputs, inputs of the matrices of MiniLM-L6 and BERT-base
    (384, 384),
    (1536, 384),
    (384, 1536),
    (768, 768),
    (3072, 768),
    (768, 3072),
)
ROWS = 4096
REPEATS = 7
BANDWIDTH_BYTES = 2**29


def run(plan: Plan) -> list[Table]:
    """The roof, then bulk encoding held against it, both in one interleaved run."""
    dtypes = ["float32", *(["bfloat16"] if computes_bfloat16("cpu") else [])]
    rows = plan.size(ROWS, 256)
    jobs: dict[str, Callable[[], object]] = {}
    for dtype in dtypes:
        for outputs, inputs in SHAPES:
            jobs[_name(dtype, rows, outputs, inputs)] = _gemm(
                rows, outputs, inputs, getattr(torch, dtype)
            )
    block = torch.randn(plan.size(BANDWIDTH_BYTES, 2**22) // 4)
    target = torch.empty_like(block)
    jobs |= {"read": block.sum, "copy": partial(target.copy_, block)}
    folder = checkpoints.build(plan.checkpoint)
    texts = corpora.documents(plan.size(500, 4), checkpoints.open_tokenizer(folder))
    opened, _ = peers.open_peers(folder, device="cpu", only=("colbert_rag",))
    for label, peer in opened.items():
        if peer.encode is not None:
            jobs[f"encode {label}"] = partial(peer.encode, texts)
    for job in jobs.values():
        job()
    timings = interleave(jobs, repeats=max(plan.repeats, plan.size(REPEATS, 1)))
    roof, rates = _roof(timings, rows, block)
    share = Table(
        "roofline",
        f"Bulk encoding as a share of the GEMM rate, {len(texts)} documents, "
        f"{checkpoints.count_tokens(texts, folder):,} tokens: "
        f"{checkpoints.title(plan.checkpoint, folder)}",
    )
    work = encoding_work(folder, checkpoints.lengths(texts, folder))
    for label in opened:
        timing, dtype = timings[f"encode {label}"], label.split()[1]
        rate = work / timing.seconds / 1e9
        share.timed(
            label,
            timing,
            None,
            {
                "GFLOP": work / 1e9,
                "GFLOP/s": rate,
                "of the roof": rate / rates[dtype],
                "of its round": _of_its_round(timings, dtype, rows, timing, work),
            },
        )
    share.notes.append(
        "Real tokens only: linear layers, attention and projection; no padding, no embedding "
        "look-ups, norms or activations are counted as work. The roof is the fastest GEMM above."
    )
    share.notes.append(
        "of its round: the median over repetitions of the rate over that of the fastest GEMM in "
        "the same repetition. A processor that is at its highest clock in some seconds only has a "
        "roof that no job of several seconds meets."
    )
    return [roof, share]


def encoding_work(folder: Path, lengths: Sequence[int]) -> float:
    """Floating-point operations that encoding texts of these lengths cannot do without."""
    config = json.loads((folder / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    layers, dim = config["num_hidden_layers"], _dim(folder)
    # ModernBERT gates its feed-forward layers, and looks 64 tokens each way in two of three.
    gated = config["model_type"] == "modernbert"
    matrices = layers * (4 * hidden**2 + (3 if gated else 2) * hidden * inner)
    kinds = config.get("layer_types") or ["full_attention"] * layers
    window = config.get("local_attention", 0) + 1
    per_token = 2 * (matrices + hidden * dim)
    work = 0.0
    for length in lengths:
        seen = sum(length if kind == "full_attention" else min(length, window) for kind in kinds)
        work += length * (per_token + 4 * hidden * seen)
    return work


def _dim(folder: Path) -> int:
    name = folder.name.removesuffix("-random").rsplit("-", 1)[0]
    return checkpoints.SHAPES[name].dim


def _name(dtype: str, rows: int, outputs: int, inputs: int) -> str:
    return f"GEMM {dtype} {rows} x {inputs} x {outputs}"


def _of_its_round(
    timings: dict[str, Timing], dtype: str, rows: int, encoding: Timing, work: float
) -> float:
    """How much of the fastest product of its repetition encoding reaches, the median of all."""
    products = [
        (2 * rows * outputs * inputs, timings[_name(dtype, rows, outputs, inputs)])
        for outputs, inputs in SHAPES
    ]
    return median(
        (work / repetition.seconds)
        / max(each / timing.repetitions[number].seconds for each, timing in products)
        for number, repetition in enumerate(encoding.repetitions)
    )


def _gemm(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(rows, inputs, generator=generator).to(dtype)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    return partial(torch.nn.functional.linear, states, weight)


def _roof(timings: dict[str, Timing], rows: int, block: Tensor) -> tuple[Table, dict[str, float]]:
    """The machine's rates, and the best GFLOP/s by dtype."""
    table = Table("roofline", "The machine: best of the repetitions")
    rates: dict[str, float] = {}
    for name, timing in timings.items():
        if name.startswith("GEMM"):
            _, dtype, *shape = name.replace(" x ", " ").split()
            work = 2.0
            for size in shape:
                work *= int(size)
            rate = work / timing.best / 1e9
            rates[dtype] = max(rates.get(dtype, 0.0), rate)
            table.rows.append({"what": name, "rate": rate, "unit": "GFLOP/s"})
        elif name in ("read", "copy"):
            moved = block.nbytes * (2 if name == "copy" else 1)
            label = (
                f"{name} {block.nbytes / 2**20:.0f} MiB{' (read and written)' * (name == 'copy')}"
            )
            table.rows.append({"what": label, "rate": moved / timing.best / 1e9, "unit": "GB/s"})
    return table, rates
