"""All that the library knows of each primitive of JAX, in one class: ``Primitive``.

| file | primitives |
|---|---|
| ``entries`` | functions of single entries, such as ``tanh``, ``add`` and ``select_n`` |
| ``axis_moves`` | move, cut and join axes: ``reshape``, ``transpose``, ``concatenate`` |
| ``lookups`` | look up or write at computed places: ``gather``, ``scatter``, ``dynamic_slice`` |
| ``sums`` | contractions and reductions: ``dot_general``, ``reduce_sum``, ``cumsum`` |
| ``windows`` | convolutions and pooling |
| ``order`` | ``sort``, ``top_k``, ``argmax`` |
| ``random_numbers`` | random bits and keys |
| ``control`` | ``scan``, ``while``, ``cond`` |
| ``outside`` | callbacks, kernels, other devices |

``record`` has the class, with what each attribute means, and the table; ``table`` fills it.
``axes`` names axes as in ``einsum``; ``reading`` reads a program and has what its readers share;
``sides`` are the sides of a choice; ``new_sizes`` has shapes and boundaries in other sizes.

Where to add: say that JAX gets a primitive ``halve``, which divides each entry by two.

1. Its description is one line in ``entries``. A sum becomes the sum of the halves, and a factor
   stays the factor::

       PRIMITIVES["halve"] = OfEntries(lambda a: a / 2, linear=True)

   A primitive of another kind is a class with ``@describes("name")`` above it, in the file of its
   family. ``read`` unifies dimensions that must have one size; ``evaluate`` computes it with NumPy;
   ``resized`` returns the parameters that hold sizes.

2. Its example is one line of ``UNARY`` in ``tests/primitive_examples_elementwise``: the function
   and the range of numbers that it is tried with::

       "halve": (lax.halve, -3, 3),

The tests of all examples check the description against JAX: whether the function is linear, which
axes are the same, and that growths are exact. A missing fact may refuse a growth, but never makes a
wrong one.
"""
