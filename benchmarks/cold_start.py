"""From `python` to the first score: import, load, first pair, each in a new process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import checkpoints, corpora, peers
from benchmarks.machine import ROOT, installed
from benchmarks.report import Plan, Table
from benchmarks.timing import interleave
from colbert_rag.device import resolve_dtype


@dataclass(frozen=True, slots=True)
class Program:
    """What a user of a peer writes; a child process runs it.

    Attributes:
        package: The distribution that must be installed.
        imports: Its import statement.
        load: Opens `folder`.
        rerank: Scores `texts` for `query`.
        encode: Token vectors of `texts`; "" for peers that only rerank.
    """

    package: str
    imports: str
    load: str
    rerank: str
    encode: str = ""


PROGRAMS = {
    "colbert_rag": Program(
        "torch",
        "from colbert_rag import ColBERT",
        "model = ColBERT.from_pretrained(folder, device='cpu')",
        "model.score(query, texts)",
        "vectors = model.encode_documents(texts)",
    ),
    peers.ST: Program(
        peers.ST,
        "from sentence_transformers import MultiVectorEncoder",
        "model = MultiVectorEncoder(folder, device='cpu', local_files_only=True)",
        "model.similarity(model.encode_query([query], show_progress_bar=False), "
        "model.encode_document(texts, show_progress_bar=False))",
        "vectors = model.encode_document(texts, show_progress_bar=False)",
    ),
    "rerankers": Program(
        "rerankers",
        "from rerankers import Reranker",
        "model = Reranker(folder, model_type='colbert', device='cpu', verbose=0)",
        "model.rank(query, texts)",
    ),
    peers.LLAMA_INDEX: Program(
        peers.LLAMA_INDEX,
        "from llama_index.postprocessor.colbert_rerank import ColbertRerank\n"
        "from llama_index.core.schema import NodeWithScore, TextNode",
        "model = ColbertRerank(model=folder, tokenizer=folder, device='cpu', top_n=10)",
        "model.postprocess_nodes([NodeWithScore(node=TextNode(text=text)) for text in texts], "
        "query_str=query)",
    ),
}

TRANSFORMERS = Program(
    "transformers",
    "import torch\nfrom transformers import AutoModel, AutoTokenizer",
    "tokenizer = AutoTokenizer.from_pretrained(folder)\nmodel = AutoModel.from_pretrained(folder)",
    "with torch.inference_mode():\n"
    "    model(**tokenizer([query, *texts], padding=True, truncation=True, return_tensors='pt'))",
)
"""No peer, for it scores nothing: what every peer pays for torch, transformers and the weights."""

CHILD = """
import json, pathlib, resource, sys, time
folder, query, path = sys.argv[1:]
texts = json.loads(open(path, encoding="utf-8").read())
def peak():
    # ru_maxrss on Linux begins with the peak of the process that started this one.
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)
start = time.perf_counter()
{imports}
imported = time.perf_counter()
{load}
loaded, before = time.perf_counter(), peak()
{job}
done = time.perf_counter()
print(json.dumps(dict(import_seconds=imported - start, load_seconds=loaded - imported,
    job_seconds=done - loaded, loaded_mib=before, peak_mib=peak())))
"""


def child(program: Program, job: str, folder: Path, query: str, texts: Path) -> dict[str, float]:
    """Run one program in a new process and give what it measured of itself.

    Raises:
        CalledProcessError: the program failed, as a peer made for other versions does.
    """
    code = CHILD.format(imports=program.imports, load=program.load, job=job)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(folder), query, str(texts)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def runnable(
    programs: Mapping[str, Program], folder: Path, query: str, texts: Path
) -> tuple[dict[str, Program], list[str]]:
    """Programs that run here; trying them fills the page cache. And why others do not."""
    found, skipped = {}, []
    for name, program in programs.items():
        if installed(program.package) is None:
            skipped.append(f"Left out: {name}: not installed")
            continue
        try:
            child(program, program.rerank, folder, query, texts)
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip().splitlines() or ["no message"])[-1]
            skipped.append(f"Left out: {name}: {installed(program.package)}: {reason}")
        else:
            found[name] = program
    return found, skipped


def label(name: str) -> str:
    """A program's name with the dtype it computes in unless told otherwise."""
    return f"{name} {resolve_dtype('auto', 'cpu') if name == 'colbert_rag' else 'float32'}"


def write_texts(texts: list[str], name: str) -> Path:
    """Put a child's texts into a file, so that making them is no part of its memory."""
    path = checkpoints.CACHE / f"{name}.json"
    path.write_text(json.dumps(texts), encoding="utf-8")
    return path


def run(plan: Plan) -> list[Table]:
    """Time new processes that score one pair."""
    folder = checkpoints.build(plan.checkpoint)
    query = corpora.questions(1)[0]
    texts = write_texts(corpora.documents(1, checkpoints.open_tokenizer(folder)), "one")
    programs, skipped = runnable(
        {**PROGRAMS, "transformers alone": TRANSFORMERS}, folder, query, texts
    )
    found: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    jobs = {
        name: lambda name=name: found[name].append(
            child(programs[name], programs[name].rerank, folder, query, texts)
        )
        for name in programs
    }
    timings = interleave(jobs, repeats=plan.size(plan.repeats, 1), least_seconds=0)
    baseline = timings.get(peers.ST)
    table = Table(
        "cold_start",
        f"Cold start (new process, files in the page cache), 1 query x 1 document: "
        f"{checkpoints.title(plan.checkpoint, folder)}",
        notes=[
            *skipped,
            "seconds: the whole process, Python's own start and exit included. The parts are "
            "medians of what the process measured of itself.",
            "transformers alone: one forward pass of the backbone and no score, the least that "
            "any peer built on it can cost.",
            f"Scores of {peers.LLAMA_INDEX} are not the checkpoint's, see rerank.",
        ],
    )
    not_compared = (peers.LLAMA_INDEX, "transformers alone")  # other scores, and none
    for name, timing in timings.items():
        parts = {key: _median(found[name], key) for key in found[name][0]}
        table.timed(
            label(name),
            timing,
            None if baseline is None or name in not_compared else baseline.seconds,
            {
                "import": parts["import_seconds"],
                "load": parts["load_seconds"],
                "first score": parts["job_seconds"],
                "peak MiB": parts["peak_mib"],
            },
        )
    return [table]


def _median(found: list[dict[str, float]], key: str) -> float:
    return sorted(part[key] for part in found)[len(found) // 2]
