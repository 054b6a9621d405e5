"""A kept fuzz driver: `python -m tests.fuzz [--minutes M] [--seed S] [--target NAME] [--only N]`.

A target is a module of this package, found by its file name. It has, at its top level:

    CORPUS: Sequence[Case]              kept inputs that were a defect once; () when there are none
    def prepare() -> None               imports and builds whatever is paid once per process
    def draw(rng: random.Random) -> Case    one new input
    def run(case: Case, folder: Path) -> None   uses it; raises only on a defect

`Case` is the target's own type, most often a frozen dataclass. Its `repr` is printed beside a
defect, so keep it to a line: an offset and a value rather than a megabyte of bytes.

* Input N of seed S is `draw(random.Random(f"{S}/{N}"))`, so any one can be repeated alone. `draw`
  therefore takes every choice from `rng`, and none from a counter, the clock, `hash` or the order
  of a set. Kept inputs are the numbers -1, -2, ...: `CORPUS[0]`, `CORPUS[1]`, ... Append new ones.
* `folder` is empty, of this input alone, and removed after it. What many inputs start from (a valid
  checkpoint, an index) is built once by a `functools.cache`d function that `prepare` calls.
* `run` catches what is documented for such an input and returns; any other exception is a defect,
  and so is an `AssertionError` of its own, where the answer is wrong. It never catches `Exception`.
* The worker process lives on from input to input: `run` closes what it opens, leaves no thread, and
  `os.chdir`, signal handlers or environment as they were. It prints nothing (capture it).
* An input is a defect, too, if it takes more than `SECONDS` (2; the better of two tries) or more
  than `MEBIBYTES` (300) above the process after `prepare`; if it never ends, the worker is killed.
  A target may define either constant itself to be stricter.

`make test` runs some hundred inputs of each target: a single one should take milliseconds.
"""
