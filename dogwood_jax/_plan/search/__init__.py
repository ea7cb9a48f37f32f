"""``searched``: what becomes of arrays, found by evaluating both networks.

In come a growth and what it claims, two programs in small sizes. Out come growths in which arrays
are rescaled, and new entries filled, so that outputs are those of the network. No file knows a
primitive. What is found is a proposal: the check decides about it on samples of its own.

| file | what it does |
|---|---|
| ``starts`` | what new entries of a width may begin with, in the order in which it is tried |
| ``unknowns`` | which factors on arrays may make up for a size, in the order of preference |
| ``problem`` | by how much outputs differ for some factors |
| ``together`` | evaluates a program for several arguments at once |
| ``solve`` | the factors for which they do not differ, read as powers of ratios |
| ``weighed`` | arrays that scale, one by one, the units that others write |
| ``search`` | starts and factors together |

Where to add: a way to grow that no start leads to is one more line of ``starts``. It must win
growths of several networks.
"""
