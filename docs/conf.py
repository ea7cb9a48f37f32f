"""How the documentation is built: ``sphinx-build -W docs docs/_build/html``."""

import dogwood_jax

project = "dogwood_jax"
author = "The dogwood_jax authors"
copyright = author
release = version = dogwood_jax.__version__

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
# Figures are linked to from where they are told, and stand in no table of contents.
suppress_warnings = ["toc.not_included"]
html_theme = "sphinx_book_theme"
html_title = "dogwood_jax"
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
html_theme_options = {
    "show_navbar_depth": 2,
    "show_toc_level": 2,
    "navbar_persistent": [],  # one search field, that of the sidebar
}

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
