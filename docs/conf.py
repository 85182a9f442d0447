"""How Sphinx builds this documentation; warnings are errors there, and it needs no network."""

from sphinx.application import Sphinx

from hpcpool.wire.version import VERSION

project = "hpcpool"
author = "The hpcpool developers"
copyright = f"2026, {author}"
release = version = VERSION

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
# `name` in a docstring is code, as in Markdown.
default_role = "code"

html_theme = "furo"
html_title = f"hpcpool {release}"
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
# The docstrings say what each argument can be, in fewer words than its type.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_param = False  # "stdout, stderr: ..." stays one entry

doctest_test_doctest_blocks = "default"
doctest_global_setup = "from hpcpool import HPCPoolExecutor"


#: The lines about attributes as they were written. Napoleon takes what stands before a colon for a type.
_written: dict[str, list[str]] = {}


def keep_attribute(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    if what in ("attribute", "data", "property"):
        _written[name] = list(lines)


def restore_attribute(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = _written.pop(name, lines)


def mark_literal_blocks(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Let an indented block below a line that ends with a colon be code, as it is in Markdown."""
    for index in range(len(lines) - 2):
        line, between, block = lines[index : index + 3]
        starts_block = line.rstrip().endswith(":") and not between.strip() and block.startswith("    ")
        if starts_block and not line.startswith((" ", ":", "..")) and not line.rstrip().endswith("::"):
            lines[index] = f"{line.rstrip()}:"


def setup(app: Sphinx) -> None:
    # Napoleon, which reads the sections of a docstring by their colons, has priority 500.
    app.connect("autodoc-process-docstring", keep_attribute, priority=400)
    app.connect("autodoc-process-docstring", restore_attribute, priority=600)
    app.connect("autodoc-process-docstring", mark_literal_blocks, priority=700)
