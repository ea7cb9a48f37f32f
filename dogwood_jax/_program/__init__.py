"""Programs as JAX traces them.

``program`` traces a function with the shapes of its variables and inputs into a ``Program``:
equations, with the paths of arguments and results. ``interpret`` is the only loop over these
equations; each analysis of a program passes its own functions to this loop. ``subprograms`` finds
the programs inside of equations.

``like_layers`` finds layers that repeat the same equations, and leaves some out of a program.
``numbered`` finds layers with numbers in their names, and ``left_out`` leaves some of them out of a
program. ``sameness`` gives equal numbers to equations that do the same.

``kernels`` replaces kernels, which the library cannot read, by JAX functions. ``shards`` turns a
program for several devices into a program for one device.

A program that was read has a symbolic dimension for each axis of each value: ``dims`` unifies,
multiplies and concatenates them, ``values`` holds other facts about a value, and ``reasons`` are
sentences with a kind that explain why a dimension cannot grow.

``primitives/`` is the table of primitives. Its ``__init__`` shows how to add one.
"""
