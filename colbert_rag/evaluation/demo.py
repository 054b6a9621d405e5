"""A small judged collection that every machine has: questions about Python's own documentation.

The documents are docstrings of the standard library; the questions and what answers them are ours,
asked in a beginner's words. It shows what an evaluation looks like and runs in seconds; what it
measures says nothing about anybody's own documents.
"""

from __future__ import annotations

from colbert_rag.evaluation.collection import JudgedCollection
from colbert_rag.evaluation.docstrings import standard_library

MODULES = frozenset(
    "base64 bisect calendar contextlib copy csv difflib filecmp fnmatch fractions functools "
    "getpass glob gzip heapq html json linecache os pprint queue random re secrets shlex shutil "
    "statistics string subprocess tempfile textwrap timeit traceback uuid warnings "
    "webbrowser zipfile".split()
)
"""Small modules that have had the same functions for many releases."""

# What answers a question: 2 for what does it, 1 for what can be made to.
QUESTIONS: dict[str, dict[str, int]] = {
    "How do I run another program and get what it prints?": {
        "subprocess.run": 2,
        "subprocess.check_output": 2,
        "subprocess.getoutput": 2,
        "subprocess.getstatusoutput": 1,
        "subprocess.Popen": 1,
    },
    "delete a folder and everything inside it": {"shutil.rmtree": 2, "os.removedirs": 1},
    "How do I ask for a password without showing it?": {
        "getpass.unix_getpass": 2,
        "getpass.win_getpass": 2,
        "getpass": 2,
    },
    "Which user is logged in?": {"getpass.getuser": 2, "getpass": 1},
    "break a long line into lines that are not too wide": {
        "textwrap.wrap": 2,
        "textwrap.fill": 2,
        "textwrap.TextWrapper": 1,
    },
    "remove the white space that all lines begin with": {"textwrap.dedent": 2},
    "put something in front of every line": {"textwrap.indent": 2},
    "cut a text short and end it with dots": {"textwrap.shorten": 2},
    "Where is the executable of a command?": {"shutil.which": 2},
    "How many columns does my terminal have?": {"shutil.get_terminal_size": 2},
    "pack a directory into a zip or tar file": {"shutil.make_archive": 2},
    "extract an archive": {
        "shutil.unpack_archive": 2,
        "zipfile.ZipFile.extractall": 2,
        "zipfile.ZipFile.extract": 1,
    },
    "duplicate a whole directory": {"shutil.copytree": 2},
    "rename a file, even to another disk": {"shutil.move": 2, "os.renames": 1},
    "create a directory and all those above it": {"os.makedirs": 2},
    "go through all files below a directory": {"os.walk": 2, "glob.glob": 1, "glob.iglob": 1},
    "read an environment variable, or a default": {"os.getenv": 2},
    "find files whose names match a wildcard": {
        "glob.glob": 2,
        "glob.iglob": 2,
        "fnmatch.filter": 1,
        "fnmatch.fnmatch": 1,
    },
    "a scratch directory that vanishes after use": {
        "tempfile.TemporaryDirectory": 2,
        "tempfile.mkdtemp": 1,
    },
    "What is the middle value of some numbers?": {
        "statistics.median": 2,
        "statistics.median_low": 1,
        "statistics.median_high": 1,
    },
    "the most common value": {"statistics.mode": 2, "statistics.multimode": 2},
    "How spread out are my measurements?": {
        "statistics.stdev": 2,
        "statistics.pstdev": 2,
        "statistics.variance": 2,
        "statistics.pvariance": 2,
    },
    "fit a straight line": {"statistics.linear_regression": 2},
    "put a list into random order": {"random.Random.shuffle": 2},
    "pick several items without picking one twice": {"random.Random.sample": 2},
    "a secure token for a link that resets a password": {
        "secrets.token_urlsafe": 2,
        "secrets.token_hex": 1,
        "secrets": 1,
    },
    "Is this word misspelt, and what was meant?": {"difflib.get_close_matches": 2},
    "show what changed between two versions of a file": {
        "difflib.unified_diff": 2,
        "difflib.context_diff": 2,
        "difflib.ndiff": 2,
        "difflib.Differ": 1,
        "difflib.HtmlDiff": 1,
    },
    "Do two files have the same content?": {"filecmp.cmp": 2, "filecmp.cmpfiles": 1},
    "split a command line the way a shell does": {"shlex.split": 2},
    "make a string safe to use in a shell command": {"shlex.quote": 2, "shlex.join": 1},
    "turn a Python object into JSON": {
        "json.dumps": 2,
        "json.dump": 2,
        "json.encoder.JSONEncoder": 1,
    },
    "parse JSON text": {"json.loads": 2, "json.load": 1, "json.decoder.JSONDecoder": 1},
    "the ten smallest items": {"heapq.nsmallest": 2},
    "merge inputs that are already sorted": {"heapq.merge": 2},
    "insert into a sorted list": {"bisect.insort_right": 2, "bisect.insort_left": 2},
    "remember results of a function that is slow": {
        "functools.lru_cache": 2,
        "functools.cache": 2,
    },
    "keep name and docstring in a decorator": {
        "functools.wraps": 2,
        "functools.update_wrapper": 2,
    },
    "ignore an exception": {"contextlib.suppress": 2},
    "capture what is printed": {"contextlib.redirect_stdout": 2},
    "duplicate an object and all that it contains": {"copy.deepcopy": 2},
    "Does February have 29 days in this year?": {"calendar.isleap": 2},
    "On which day of the week was a date?": {"calendar.weekday": 2},
    "show a page to the user in the browser": {
        "webbrowser.open": 2,
        "webbrowser.open_new": 1,
        "webbrowser.open_new_tab": 1,
    },
    "make a text safe to put into a web page": {"html.escape": 2},
    "replace what matches a pattern": {"re.sub": 2, "re.subn": 2},
    "How long does a piece of code take?": {
        "timeit.timeit": 2,
        "timeit.repeat": 2,
        "timeit.Timer": 1,
        "timeit": 1,
    },
    "print a nested structure so that one can read it": {
        "pprint.pprint": 2,
        "pprint.pp": 2,
        "pprint.pformat": 1,
        "pprint": 1,
    },
    "get one line of a file by its number": {"linecache.getline": 2},
    "Is this file a zip archive?": {"zipfile.is_zipfile": 2},
}


def demo_collection() -> JudgedCollection:
    """Fifty questions over some six hundred docstrings of this Python.

    Raises:
        ColBERTRagError: this Python came without the sources of its library.
    """
    passages = standard_library(modules=MODULES)
    documents = {passage.name: passage.content for passage in passages}
    queries = {f"q{number:02}": question for number, question in enumerate(QUESTIONS, start=1)}
    # Releases of Python differ in what has a docstring.
    judgements = {
        query: {name: grade for name, grade in QUESTIONS[question].items() if name in documents}
        for query, question in queries.items()
    }
    return JudgedCollection.of("demo", judgements, queries, documents)
