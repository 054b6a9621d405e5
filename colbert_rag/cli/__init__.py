"""The command line, `colbert-rag`.

A command is a module here with `add_arguments` and `run`, and a row in `COMMANDS`. Modules import
nothing heavy when they are imported themselves: `--help` must not wait for torch.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from colbert_rag import __version__
from colbert_rag.cli import demo, explain, index, info, inspect, rerank, search
from colbert_rag.cli.options import UsageError, in_options
from colbert_rag.cli.output import note
from colbert_rag.display import one_line
from colbert_rag.errors import ColBERTRagError

__all__ = ["main"]

PROGRAM = "colbert-rag"


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        name: What is typed.
        summary: What it does, in one line.
        add_arguments: Declares its arguments, its description and its examples.
        run: Does it, and returns the exit status.
    """

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = (
    Command(
        "rerank",
        "order the documents in files by how well they answer a query",
        rerank.add_arguments,
        rerank.run,
    ),
    Command(
        "explain",
        "say which words made the score of a document",
        explain.add_arguments,
        explain.run,
    ),
    Command(
        "index",
        "encode documents once, into a file or a Qdrant server",
        index.add_arguments,
        index.run,
    ),
    Command(
        "search",
        "find the documents of an index that answer a query best",
        search.add_arguments,
        search.run,
    ),
    Command(
        "info",
        "say what an index holds, and which model made it",
        info.add_arguments,
        info.run,
    ),
    Command(
        "inspect",
        "describe a checkpoint, and say what would be refused, without loading it",
        inspect.add_arguments,
        inspect.run,
    ),
    Command(
        "demo",
        "rerank Python's own documentation, offline, in both frameworks",
        demo.add_arguments,
        demo.run,
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What follows the program's name; None takes the process's own.

    Returns:
        0 when all went well (or the reader of a pipe has had enough), 1 after an error of ours or
        of the system, 130 after Ctrl-C.

    Raises:
        SystemExit: with 2 after wrong usage, with 0 after `--help` or `--version`.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    # A character that the terminal cannot show must not end the program, as on older Windows.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    overview = _overview()
    if not words:
        overview.print_help(sys.stderr)
        return 2
    name = overview.parse_args(words[:1]).command
    command = next(command for command in COMMANDS if command.name == name)
    parser = _parser(command)
    try:
        status = command.run(_parsed(parser, words[1:]))
        sys.stdout.flush()
    except UsageError as error:
        parser.error(in_options(one_line(str(error))))
    except KeyboardInterrupt:
        note("interrupted")
        return 130
    except BrokenPipeError:
        # As after `| head`. What is still buffered must not fail again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ColBERTRagError, OSError) as error:
        note(f"error: {in_options(_one_line(error))}")
        return 1
    return status


def _overview() -> argparse.ArgumentParser:
    width = max(len(command.name) for command in COMMANDS)
    listed = (f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS)
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND ...",
        description="Late-interaction reranking and retrieval with ColBERT models.",
        epilog="\n".join(
            ("commands:", *listed, "", f"{PROGRAM} COMMAND --help says more about each.")
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    parser.add_argument(
        "command",
        metavar="COMMAND",
        choices=[command.name for command in COMMANDS],
        help=argparse.SUPPRESS,
    )
    return parser


def _parser(command: Command) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} {command.name}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    return parser


def _parsed(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Parse with options before, between and after the words they do not belong to.

    argparse's subcommands cannot do that, hence a parser for each command. Intermixed parsing does,
    but refuses a first word with a dash after `--`, such as a query of "-1 or 1?".
    """
    after = words[words.index("--") + 1 :] if "--" in words else []
    if after and after[0].startswith("-"):
        return parser.parse_args(words)
    return parser.parse_intermixed_args(words)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return one_line(f"{error.filename}: {error.strerror}")
    return one_line(str(error)) or type(error).__name__
