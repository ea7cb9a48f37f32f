"""``trace``: from a function to its ``Widths``, which say where each hidden dimension occurs.

In come ``apply``, shapes of its variables, and inputs. Out come ``Widths``: plain data, printed as
a table, with the layout of every axis of every array. Between them, in this order:

| file | what it does |
|---|---|
| ``trace`` | the stage itself: makes the program, has it read, and names what was found |
| ``rules/`` | reads equations, each by the rule of its primitive: which dimensions are the same |
| ``roles`` | which weights are outgoing, because they are contracted over units |
| ``naming`` | turns dimensions into widths with names, and axes into layouts |
| ``widths`` | the result: ``Widths``, ``Width``, ``Leaf`` |

They share ``layout`` (how units lie along an axis) and ``attention``.

Where to add: a function of single entries needs no rule, only a record in
``_program/primitives``. Another primitive is one function in ``rules/`` and one example in the
tests. Widths that meet a primitive without a rule cannot grow. What must become of arrays is no
question of rules: ``_plan/silence`` finds the zeros that silence units, ``_plan/search`` the rest.
"""
