"""How Sphinx builds these pages; `make docs` calls it with every warning an error."""

import sys
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

# The package of this checkout, whatever is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

# Imported here because autodoc would import them with TYPE_CHECKING set, which llama-index-core
# does not survive.
import colbert_rag.langchain
import colbert_rag.llama_index
from colbert_rag import errors

project = "colbert_rag"
version = release = colbert_rag.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# Headings can be linked to, as on the pages where the repository is hosted.
myst_heading_anchors = 3

# Docstrings are written for `help()`: one backtick is code there, and types stand in signatures.
default_role = "literal"
smartquotes_action = "D"  # dashes only: a quote in a docstring is part of a value
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
# Attributes are described in their class; a directive for each would repeat them.
napoleon_use_ivar = True

# What other packages define has its page elsewhere, and what is not public has none.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(collections|langchain_core|llama_index|numpy|os|pathlib|pydantic|tokenizers|torch)\..*",
    ),
    (r"py:.*", r"colbert_rag\.(backbone|checkpoint|adapter|index|inputs|model|tokenizer)\..*"),
    (
        r"py:.*",
        r"DocumentLike|KnownVectors|ModelOptions|HasText|TextLike|pd|IndexField|Json|MetadataMode|PathText|Ranker|SecretStr|SkipJsonSchema|Tensor",
    ),
]

html_theme = "furo"
html_title = "colbert_rag"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["pages.css"]


def keep_colons(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Napoleon would take what stands before a colon in a field's first line for its type."""
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]  # an empty comment


def explain_error(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element
) -> nodes.Element | None:
    """Link an error of ours to the page that explains it."""
    name = node.get("reftarget", "").rpartition(".")[2]
    if node.get("reftype") != "exc" or not hasattr(errors, name):
        return None
    anchor = "opening-a-checkpoint" if name == "CheckpointError" else name.lower()
    return make_refnode(app.builder, node["refdoc"], "troubleshooting", anchor, contnode)


def setup(app: Sphinx) -> None:
    """Register the two."""
    app.connect("autodoc-process-docstring", keep_colons, priority=1)
    app.connect("missing-reference", explain_error)
