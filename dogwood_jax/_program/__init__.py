"""Programs as JAX traces them, and the bounds of the values in them.

In comes a function with the shapes of its variables and inputs. Out comes a ``Program`` (in
``program``): equations, with the paths of arguments and results. ``interpret`` is the one loop over
these equations. Each question about a program gives this loop functions of its own. ``inner`` finds
the programs inside of equations.

``like_layers`` finds layers that are like each other, and leaves some out of a program.
``sameness`` says which equations do the same. ``kernels`` puts functions of JAX in the place of
kernels, which nobody can read. ``shards`` makes a program of one device of what devices compute
together.

``elementwise`` has a table with one row for each function of single entries. The row says, for
example, whether the function is linear and where it is finite. ``moves`` has such a table of the
operations that move entries, take some or join arrays. ``intervals`` has ``Bounds``, the lowest and
the highest value that entries may have, and computes with them. ``bounds`` says for each primitive
which bounds its results have, and where it is finite.

Where to add: a function of single entries is one row of ``ELEMENTWISE``. An operation that moves
entries is one row of ``MOVES``. Say in the row of a function where it is finite: otherwise, growths
of units that it reads are refused. Any other primitive is one case of ``bounds_of``. Without a
case, nothing is known of its results.
"""
