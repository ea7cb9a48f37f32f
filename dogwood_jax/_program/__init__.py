"""Programs as JAX traces them, and between which bounds the values in them lie.

In comes a function with the shapes of its variables and inputs; out comes a ``Program``, from
``program``: equations, with the paths of arguments and results. ``bounds`` says between which
bounds the results of each primitive lie, and where it is finite, from the bounds of its operands.

Where to add: what a primitive does to bounds is one row of a table in ``bounds``, or one case of
``bounds_of``. A primitive that is left out has results of which nothing is known, so a function
that is finite only somewhere is refused behind it.
"""
