"""How the documentation is built: ``sphinx-build -W docs docs/_build/html``."""

import dogwood_jax

project = "dogwood_jax"
author = "The dogwood_jax authors"
copyright = author
release = version = dogwood_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_theme = "sphinx_book_theme"
html_title = "dogwood_jax"
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
html_theme_options = {
    "show_navbar_depth": 2,
    "show_toc_level": 2,
    "navbar_persistent": [],  # one search field, that of the sidebar
}

# Every guide is a notebook in text, and runs at every build.
nb_execution_mode = "force"
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_merge_streams = True
# Threads of Orbax log there; what a guide has to say, it prints.
nb_output_stderr = "remove"
# A quick build, -D nb_execution_mode=off, has no kernel that says what cells are in.
suppress_warnings = ["myst-nb.lexer"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Names are documented where users find them, with types as short as they are read.
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
add_module_names = False
# One argument a line, where a signature is longer than a line.
maximum_signature_line_length = 80
napoleon_use_ivar = True
napoleon_use_rtype = False
