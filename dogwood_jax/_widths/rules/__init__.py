"""One rule for each primitive of JAX: how the dimensions of its results follow from its operands'.

``registry`` has the table ``RULES`` and what several rules need. The other files register rules
in it: ``elementwise``, ``axes`` (moving, cutting and joining them), ``sums`` (contractions and
reductions), ``lookup`` (gathering, scattering and making values), ``control`` (loops and branches).

Where to add: a function of single entries needs only its record in ``_program/primitives``. For
another primitive, write a function with ``@rule("name")`` above it, in the file of its kind. It
takes the trace, the equation and the values of the operands, and returns the values of the results.
It unifies what the operation ties, and marks weights that are contracted over units. Whether
outputs stay is no question of rules. Add an example to ``tests/primitive_examples_*``. Without one,
a test fails.
"""
