"""One rule for each primitive of JAX: how the dimensions of its results follow from its operands'.

``registry`` has the table ``RULES`` and what several rules need. The other files register rules
in it: ``elementwise``, ``axes`` (moving, cutting and joining them), ``sums`` (contractions and
reductions), ``lookup`` (gathering, scattering and making values), ``control`` (loops and branches).

Where to add: write ``@rule("name")`` above a function of the trace, the equation and the values of
its operands that returns the values of its results, in the file of its kind. What it does not say
of a result is unknown: a result without silencers cannot be silenced, one without bounds may be
anything. ``tests/primitive_examples_*`` needs an example, without which a test fails.
"""
