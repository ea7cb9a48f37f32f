"""Programs as JAX traces them, and between which bounds the values in them lie.

In comes a function with the shapes of its variables and inputs; out comes a ``Program``, from
``program``: equations, with the paths of arguments and results. ``interpret`` is the one loop over
these equations, for whatever is asked of them.

``elementwise`` says what functions of single entries are, each in one row of a table: whether zeros
stay zeros, whether they are linear, where they are finite. ``moves`` says the same of operations
that move entries, take some or join arrays. ``intervals`` has ``Bounds``, between which entries
lie, and computes with them. ``bounds`` says between which bounds the results of each primitive lie,
and where it is finite.

Where to add: a function of single entries is one row of ``ELEMENTWISE``, an operation that moves
entries one row of ``MOVES``. A row that does not say that a function is finite everywhere, nor
where, makes growths behind it refused. What another primitive does to bounds is one case of
``bounds_of``; one that is left out has results of which nothing is known.
"""
