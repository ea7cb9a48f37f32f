"""The table of primitives: what each one does, in one record.

| file | what it does |
|---|---|
| ``record`` | ``Primitive``, the record, with what each field means |
| ``axes`` | which axes of operands and results are the same, with names as in ``einsum`` |
| ``entries`` | functions of single entries, such as ``tanh`` |
| ``table`` | all records together, by name, those of other primitives among them |
| ``functions`` | what primitives compute, where NumPy is faster than JAX or must differ |

Where to add: say that JAX gets a primitive ``halve``, which divides each entry by two.

1. Its record is one line in ``entries``. A sum becomes the sum of the halves, and a factor stays
   the factor::

       "halve": _linear(),

2. Its example is one line of ``UNARY`` in ``tests/primitive_examples_elementwise``: the function
   and the range of numbers that it is tried with::

       "halve": (lax.halve, -3, 3),

That is all. ``trace`` reads widths through it, because units stay units where each entry is a
function of the entry at its place. Optimizer states follow it, and the check evaluates it with JAX.
The tests of all examples check the record against JAX: whether the function is linear, and that
growths are exact.

What a record does not state counts as not true. So a missing fact may refuse a growth, but never
makes a wrong one. A primitive of another kind, such as a new loop, also needs a rule in
``_widths/rules`` that says which dimensions are the same.
"""
