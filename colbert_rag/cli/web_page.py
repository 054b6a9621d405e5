"""What `--html` writes: a page of its own around what a notebook shows."""

from __future__ import annotations

from colbert_rag.display import Html, element, markup, one_line

# No script runs in the page, and nothing is fetched, whatever a document holds.
HEAD = Html(
    '<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width">\n'
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
    "<style>:root{color-scheme:light dark}body{max-width:980px;margin:24px auto;padding:0 12px;"
    "font:14px/1.5 system-ui,sans-serif}h1{font-size:16px;overflow-wrap:anywhere}</style>\n"
)


def web_page(title: str, *body: str) -> str:
    """A web page that needs nothing else.

    Args:
        title: Text, for the tab.
        body: Markup, or text to be escaped.
    """
    head = element("head", Html("\n"), HEAD, element("title", one_line(title)))
    return f"<!DOCTYPE html>\n{markup(element('html', head, element('body', *body)))}\n"
