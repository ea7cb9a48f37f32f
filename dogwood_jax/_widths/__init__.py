"""``trace``: from a function to its ``Widths``, which say where each hidden dimension occurs.

In come ``apply``, shapes of its variables, and inputs. Out come ``Widths``: plain data, printed as
a table, with the layout of every axis of every array. Between them, in this order:

| file | what it does |
|---|---|
| ``trace`` | the stage itself: makes the program, has it read, and names what was found |
| ``roles`` | which weights are outgoing, because they are contracted over units |
| ``naming`` | turns dimensions into widths with names, and axes into layouts |
| ``widths`` | the result: ``Widths``, ``Width``, ``Leaf`` |

They share ``layout`` (how units lie along an axis) and ``attention``.

Where to add: a primitive is one class in ``_program/primitives`` and one example in the tests.
Widths that meet an unknown primitive cannot grow. This room does not decide what becomes of
arrays: ``_plan/silence`` finds the zeros that silence units, ``_plan/search`` the rest.
"""
