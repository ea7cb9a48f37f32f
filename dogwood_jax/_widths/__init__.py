"""``trace`` finds the ``Widths`` of a function: where each hidden dimension occurs.

It takes ``apply``, the shapes of its variables, and inputs. It returns ``Widths``: plain data,
printed as a table, with the layout of every axis of every array. The steps, in this order:

| file | what it does |
|---|---|
| ``trace`` | the stage itself: traces the program, reads it, and calls the other steps |
| ``roles`` | finds outgoing weights, which are contracted over units |
| ``naming`` | turns dimensions into widths with names, and axes into layouts |
| ``widths`` | the result: ``Widths``, ``Width``, ``Leaf`` |

``layout`` describes how units lie along an axis; ``attention`` labels heads.

Where to add: a primitive is one class in ``_program/primitives`` and one example in the tests.
Widths that pass through an unknown primitive cannot grow. This room does not decide how arrays
change: ``_plan/silence`` finds the zeros that silence units, ``_plan/search`` finds the rest.
"""
