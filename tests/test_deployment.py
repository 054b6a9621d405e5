"""What the deployment page and the Dockerfile name exists: options, paths, ports, files, extras."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from colbert_rag.cli import COMMANDS, _parsed, _parser
from colbert_rag.cli.serve import KEYS, PORT
from colbert_rag.remote import wire
from colbert_rag.server.limits import Limits
from tests.helpers.pages import read_blocks

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "serving.md"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]


def block(language: str) -> str:
    (found,) = [block.code for block in read_blocks(PAGE) if block.language == language]
    return found


def accepted(words: list[str]) -> bool:
    """Whether `colbert-rag serve` takes these words."""
    command = next(command for command in COMMANDS if command.name == "serve")
    return bool(_parsed(_parser(command), words))


def instructions(name: str) -> list[str]:
    """What follows an instruction of the Dockerfile, with lines joined that a backslash parts."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name} +(.*)$", joined, re.MULTILINE)


def entry() -> list[str]:
    found: list[str] = json.loads(instructions("ENTRYPOINT")[0])
    return found


def test_every_call_on_the_page_is_one_that_is_accepted() -> None:
    text = PAGE.read_text(encoding="utf-8")
    calls = re.findall(r"^(?:\$ |ExecStart=).*?colbert-rag serve(.*)$", text, re.MULTILINE)

    assert len(calls) >= 3
    assert all(accepted(shlex.split(call)) for call in calls)


def test_every_option_on_the_page_exists() -> None:
    command = next(command for command in COMMANDS if command.name == "serve")
    known = {option for action in _parser(command)._actions for option in action.option_strings}
    docker = {"--build-arg", "--gpus", "--init", "--publish", "--tag", "--volume"}

    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", PAGE.read_text(encoding="utf-8")))

    assert named - docker <= known


def test_every_path_that_is_served_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    paths = [*wire.RERANK, wire.SCORE, wire.POOLING, wire.MODELS, wire.SEARCH, wire.DOCUMENTS]
    paths += [wire.INDEX, wire.HEALTH, wire.READY, wire.METRICS]

    assert [path for path in paths if f"{path}`" not in text] == []


def test_the_numbers_on_the_page_are_the_limits() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())

    assert f"computed at a time ({Limits.running})" in text
    assert f"wait ({Limits.waiting})" in text
    assert f"up to {Limits.explained} results" in text
    assert f"more than {Limits.body_seconds:g} seconds to come" in text
    assert f"for up to {Limits.stop_seconds:g} seconds" in text


def test_systemd_waits_longer_than_the_server_takes_to_stop() -> None:
    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(block("ini"))

    assert unit.getint("Service", "TimeoutStopSec") > Limits.stop_seconds


def test_kubernetes_asks_at_paths_that_answer_and_waits_for_the_stop() -> None:
    pod = yaml.safe_load(block("yaml"))["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    asked = {
        name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")
    }
    assert asked == {
        "startup": {"path": wire.HEALTH, "port": PORT},
        "readiness": {"path": wire.READY, "port": PORT},
        "liveness": {"path": wire.HEALTH, "port": PORT},
    }
    assert accepted([*entry()[2:], *container["args"]])
    assert container["env"][0]["name"] == KEYS
    slept = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > Limits.stop_seconds + slept
    assert container["volumeMounts"][0]["mountPath"] in instructions("VOLUME")


def test_the_image_starts_the_server_where_others_reach_it() -> None:
    assert entry()[:2] == ["colbert-rag", "serve"]
    assert accepted(entry()[2:])
    assert instructions("EXPOSE") == [str(PORT)]
    assert f":{PORT}{wire.READY}" in instructions("HEALTHCHECK")[0]


def test_the_image_is_built_from_files_that_exist_and_are_sent() -> None:
    sent = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = {
        name
        for line in instructions("COPY")
        if not line.startswith("--from")
        for name in line.split()[:-1]
    }

    assert copied == sent
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_image_has_extras_that_exist() -> None:
    (named,) = re.findall(r"'\.\[([\w,-]+)\]'", DOCKERFILE)

    assert "server" in set(named.split(",")) <= set(EXTRAS)


@pytest.mark.parametrize("user", instructions("USER"))
def test_the_image_runs_as_nobody_special(user: str) -> None:
    assert f"--uid {user} " in instructions("RUN")[-1]
    assert int(user) > 1000
