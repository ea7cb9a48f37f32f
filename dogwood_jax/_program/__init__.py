"""Programs as JAX traces them.

In comes a function with the shapes of its variables and inputs. Out comes a ``Program`` (in
``program``): equations, with the paths of arguments and results. ``interpret`` is the one loop over
these equations. Each question about a program gives this loop functions of its own.
``subprograms`` finds the programs inside of equations.

``like_layers`` finds layers that are like each other, and leaves some out of a program.
``numbered`` finds layers with numbers in their names, and ``left_out`` leaves some of them out of a
program. ``sameness`` says which equations do the same.

``kernels`` puts functions of JAX in the place of kernels, which nobody can read. ``shards`` makes a
program of one device of what devices compute together.

A program that was read has a symbolic dimension for each axis of each value: ``dims`` unifies,
multiplies and concatenates them, ``values`` is what else is known of a value, and ``reasons`` are
sentences with a kind that say why a dimension cannot grow.

``primitives/`` is the table of primitives. Its front says how to add one.
"""
