"""The command line, `colbert-rag`.

A command is a module here with `add_arguments` and `run`, and a row in `COMMANDS`. Modules import
nothing heavy when they are imported themselves: `--help` must not wait for torch.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

from colbert_rag import __version__
from colbert_rag.cli import (
    demo,
    evaluate,
    explain,
    index,
    info,
    inspect,
    rerank,
    rerank_many,
    search,
    serve,
    tune,
)
from colbert_rag.cli.options import UsageError
from colbert_rag.cli.output import naming_stdout, note, plain_logs
from colbert_rag.cli.spelling import in_options
from colbert_rag.display import one_line
from colbert_rag.errors import ColBERTRagError, ReadingError
from colbert_rag.settings import meant

__all__ = ["main"]

PROGRAM = "colbert-rag"

OVERVIEW = ("-h", "--help", "--version")
"""What may stand in place of a command."""

ELSEWHERE = {"help": "--help", "version": "--version", "-v": "--version", "-V": "--version"}
"""What other programs call it."""


class Module(Protocol):
    """What the module of a command holds."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its arguments, its description and its examples."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it, and return the exit status."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        name: What is typed.
        summary: What it does, in one line.
        module: What declares its arguments and runs it.
        instead: What does so where an option is given that changes the other arguments.
    """

    name: str
    summary: str
    module: Module
    instead: Mapping[str, Module] = field(default_factory=dict)

    def chosen(self, words: Sequence[str]) -> Module:
        """What runs for these words, which follow the command's name."""
        options = {word.partition("=")[0] for word in words[: _end_of_options(words)]}
        return next(
            (module for option, module in self.instead.items() if option in options), self.module
        )


def _end_of_options(words: Sequence[str]) -> int:
    return words.index("--") if "--" in words else len(words)


COMMANDS = (
    Command(
        "rerank",
        "order the documents in files by how well they answer a query",
        rerank,
        {"--queries": rerank_many},
    ),
    Command("explain", "say which words made the score of a document", explain),
    Command("index", "encode documents once, into a file or a Qdrant server", index),
    Command("search", "find the documents of an index that answer a query best", search),
    Command("tune", "make a large index quick to search, and measure what is found", tune),
    Command("serve", "answer other programs over HTTP: rerank, search, a page to try it", serve),
    Command("evaluate", "measure on judged queries whether reranking helps", evaluate),
    Command("info", "say what an index holds, and which model made it", info),
    Command(
        "inspect",
        "describe a checkpoint, and say what would be refused, without loading it",
        inspect,
    ),
    Command("demo", "rerank Python's own documentation, offline, in both frameworks", demo),
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and cannot steer the terminal."""

    def error(self, message: str) -> NoReturn:
        """End the program with status 2."""
        super().error(one_line(message))


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
    if sys.stderr is None:  # as after 2>&-; a log that nobody wants does not end the work
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    # A character that the terminal cannot show must not end the program, as on older Windows.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is None:  # the next file that is opened would have its number
        note("error: standard output is closed: send it to a file, or to /dev/null")
        return 1
    try:
        try:
            with plain_logs():
                return _run(words)
        finally:
            with naming_stdout():
                sys.stdout.flush()
    except KeyboardInterrupt:
        note("interrupted")
        return 130
    except BrokenPipeError:  # as after `| head`
        _drop_output()
        return 0
    except (ColBERTRagError, OSError) as error:
        note(f"error: {_message(error)}")
        _drop_output()
        return 1


def _run(words: Sequence[str]) -> int:
    overview = _overview()
    if not words:
        overview.print_help(sys.stderr)
        return 2
    if any("\0" in word for word in words):  # which no shell gives, and no file name holds
        overview.error("an argument holds a zero byte")
    commands = {command.name: command for command in COMMANDS}
    if words[0] in OVERVIEW:
        overview.parse_args(words[:1])  # which ends the program
    command = commands.get(words[0])
    if command is None:
        overview.error(_no_command(words, list(commands)))
    module = command.chosen(words[1:])
    parser = _parser(command, module)
    try:
        return module.run(_parsed(parser, words[1:]))
    except UsageError as error:
        parser.error(str(error))


def _no_command(words: Sequence[str], names: Sequence[str]) -> str:
    """What is wrong with the word where a command belongs."""
    command = next((word for word in words if word in names), None)
    if command and words[0].startswith("-"):
        example = f"{PROGRAM} {command} ... {words[0]}"
        return f"{words[0]} stands before the command: options come behind it, as in {example}"
    near = ELSEWHERE.get(words[0]) or meant(words[0], [*names, *OVERVIEW])
    hint = f"; did you mean {near}?" if near else f", expected one of {', '.join(names)}"
    return f"{words[0]!r} is no command{hint}"


def _drop_output() -> None:
    """Drop what cannot be written, which would fail again when Python exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _overview() -> argparse.ArgumentParser:
    width = max(len(command.name) for command in COMMANDS)
    listed = (f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS)
    parser = Parser(
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
    return parser


def _parser(command: Command, module: Module | None = None) -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"{PROGRAM} {command.name}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    (module or command.module).add_arguments(parser)
    return parser


def _parsed(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse with options before, between and after the words they do not belong to.

    argparse's subcommands cannot do that, hence a parser for each command. Intermixed parsing does,
    but refuses a first word with a dash after `--`, such as a query of "-1 or 1?".
    """
    after = words[words.index("--") + 1 :] if "--" in words else []
    leading = after and after[0].startswith("-")
    parse = parser.parse_known_args if leading else parser.parse_known_intermixed_args
    found, unknown = parse(words)
    if unknown:
        options = [option for action in parser._actions for option in action.option_strings]
        near = meant(unknown[0].partition("=")[0], options) if unknown[0].startswith("-") else ""
        hint = f"; did you mean {near}?" if near else _expected(parser, unknown[0])
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return found


def _expected(parser: argparse.ArgumentParser, unknown: str) -> str:
    takes_query = any(action.dest == "query" for action in parser._actions)
    if takes_query and not unknown.startswith("-"):
        return "; a QUERY of several words needs quotes around it"
    return f"; {parser.prog} --help lists what there is"


def _message(error: ColBERTRagError | OSError) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    text = str(error) or type(error).__name__
    # What is wrong in a file is said with the file's own names, which may look like options.
    return text if isinstance(error, ReadingError) else in_options(text)
