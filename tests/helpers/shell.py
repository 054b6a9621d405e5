"""The command line, as tests of a command call it."""

from collections.abc import Callable

import pytest

from colbert_rag.cli import main

Run = Callable[..., tuple[int, str, str]]
"""Run a command: status, standard output, standard error."""


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """What runs a command in this process."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run_command
