"""Sphinx configuration: `sphinx-build -W --keep-going -b html docs docs/_build`, from the root of the project."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]
os.environ.setdefault("ART_DATA_PATH", tempfile.mkdtemp(prefix="art-data-"))  # ART writes a folder when imported

from art_fingerprint._version import __version__  # noqa: E402

project = "art_fingerprint"
author = "The art_fingerprint developers"
copyright = author  # noqa: A001 - Sphinx wants this name
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "short_names"]
exclude_patterns = ["_build", "_ext"]
nitpicky = True
nitpick_ignore = [("py:class", "Figure"), ("py:class", "Image.Image")]  # imported for type checkers alone

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autoclass_content = "both"
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = f"art_fingerprint {release}"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_copy_source = False
