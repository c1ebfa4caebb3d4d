"""Settings of Sphinx; `make docs` builds the site, and a warning is an error."""

project = "Recloop"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["images"]
html_theme = "furo"
html_title = "Recloop"
myst_heading_anchors = 3
