"""The pages of docs/ as a site: `make docs`."""

import importlib.metadata

project = "pixeldcl_plugin"
copyright = "the authors of pixeldcl_plugin, Apache-2.0"
version = importlib.metadata.version("pixeldcl-plugin")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"pixeldcl_plugin {version}"
suppress_warnings = ["toc.not_included"]  # the studies' tables: pages that other pages link to
html_show_sourcelink = False

myst_heading_anchors = 3  # page.md#heading, as on GitHub

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Shape", "notes_style")]
