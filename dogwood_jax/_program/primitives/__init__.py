"""The description of each primitive of JAX, in one class: ``Primitive``.

| file | primitives |
|---|---|
| ``entries`` | elementwise functions, such as ``tanh``, ``add`` and ``select_n`` |
| ``axis_moves`` | move, cut and join axes: ``reshape``, ``transpose``, ``concatenate`` |
| ``lookups`` | read or write at computed positions: ``gather``, ``scatter``, ``dynamic_slice`` |
| ``sums`` | contractions and reductions: ``dot_general``, ``reduce_sum``, ``cumsum`` |
| ``windows`` | convolutions and pooling |
| ``order`` | ``sort``, ``top_k``, ``argmax`` |
| ``random_numbers`` | random bits and keys |
| ``control`` | ``scan``, ``while``, ``cond`` |
| ``outside`` | callbacks, kernels, other devices |

``record`` defines the class, its attributes, and the table; ``table`` fills the table. ``axes``
names axes as in ``einsum``; ``reading`` reads a program and holds helpers of ``read`` methods;
``sides`` holds the sides of a choice; ``new_sizes`` computes shapes and boundaries in new sizes.

How to add a primitive: suppose that JAX gets ``halve``, which divides each entry by two.

1. Its description is one line in ``entries``. The function is linear: half of a sum is the sum of
   the halves::

       PRIMITIVES["halve"] = OfEntries(lambda a: a / 2, linear=True)

   A primitive of another kind is a class with ``@describes("name")`` above it, in the file of its
   family. ``read`` unifies dimensions that must have the same size; ``evaluate`` computes the
   results with NumPy; ``resized`` returns the parameters that hold sizes.

2. Its example is one line of ``UNARY`` in ``tests/primitive_examples_elementwise``: the function
   and the range of its test inputs::

       "halve": (lax.halve, -3, 3),

The tests of all examples check the description against JAX: whether the function is linear, which
axes are the same, and that growths are exact. Because of a missing fact, a growth may be refused,
but it is never wrong.
"""
