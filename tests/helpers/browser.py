"""Headless Chromium, where the machine has one: renders a page, and says what it measured.

A page reports with `console.log("REPORT " + JSON.stringify(...))`; whatever else appears on the
console is an error.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# As root and without a network: no sandbox, no GPU process, none of the calls home.
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync --hide-scrollbars "
    "--enable-logging=stderr"
).split()
_CONSOLE = re.compile(r'^\[.*:CONSOLE.*?\] "(.*)", source: .*$', re.MULTILINE)


@dataclass(frozen=True)
class Rendering:
    """What a page looked like, and what it said."""

    screenshot: Path
    reports: list[Any]
    console: list[str]


def frame(content: str, width: int, *, body: str = "<body>") -> str:
    """A frame that is a page of its own, of that many pixels."""
    page = f"<!doctype html><meta charset=utf-8><style>body{{margin:8px}}</style>{body}{content}"
    style = f"width:{width}px;height:1000px;border:0"
    return f'<iframe srcdoc="{html.escape(page)}" style="{style}"></iframe>'


def render(
    page: str,
    folder: Path,
    *,
    script: str = "",
    dark: bool = False,
    size: str = "1700,1220",
    scale: int = 1,
) -> Rendering:
    """Render a page, run a script in it once it has loaded, and take a screenshot.

    `size` is that of the window in CSS pixels, of which each is `scale` pixels wide and high.
    """
    assert CHROMIUM is not None
    source, picture = folder / "page.html", folder / "page.png"
    run = f"<script>onload = () => {{{script}}}</script>"
    source.write_text(
        f"<!doctype html><html><meta charset=utf-8>{run}<body>{page}", encoding="utf-8"
    )
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--window-size={size}",
        f"--force-device-scale-factor={scale}",
        f"--screenshot={picture}",
        source.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = _CONSOLE.findall(done.stderr)
    reports = [json.loads(line[7:]) for line in console if line.startswith("REPORT ")]
    return Rendering(picture, reports, [line for line in console if not line.startswith("REPORT ")])
