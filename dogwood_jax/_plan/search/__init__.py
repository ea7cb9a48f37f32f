"""``searched``: factors and new entries of arrays, found by evaluating both networks.

The input is a growth and its claim: two programs in small sizes. The output is growths with
rescaled arrays and filled new entries, in which outputs equal the network's. The search needs no
rules for primitives. Its results are proposals, which the check evaluates on samples of its own.

| file | what it does |
|---|---|
| ``starts`` | initial values for new entries of a width, in the order in which they are tried |
| ``unknowns`` | which factors on arrays may compensate for a size, in the order of preference |
| ``statistics`` | which arrays training does not learn, so that factors belong to them first |
| ``problem`` | how far outputs differ for given factors |
| ``together`` | evaluates a program for several lists of arguments at once |
| ``solve`` | the factors for which outputs do not differ, as powers of ratios |
| ``weighed`` | arrays that scale the units written by other arrays, one by one |
| ``search`` | combines starts and factors |

Where to add: a way to grow that no start reaches is one more line of ``starts``. It must make
growths of several networks possible.
"""
