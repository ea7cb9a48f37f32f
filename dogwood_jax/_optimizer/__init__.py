"""``grow_opt_state`` and ``growable``: the optimizer's state grows along, and training goes on.

In come the state, the growth and ``tx``; out comes the state for the grown parameters.

| file | what it does |
|---|---|
| ``opt_state`` | the stage itself: every field by the adjoint of the growth |
| ``fields`` | what each field of a state means; the table of Optax's state classes |
| ``kept`` | what a state keeps for each array of the larger network, and how it is made |
| ``larger_params`` | the larger network's parameters, as the optimizer sees them |
| ``factored`` | second moments that are kept as means along two axes |
| ``growable`` | the wrapper: one count for each cohort of entries, or for each unit |
| ``renewed_state`` | a state in which the entries of some units begin anew |
| ``ages`` | when entries were born, and what share copies carry |
| ``by_cohort`` | an optimizer's update in which every entry has the count of its cohort |

Where to add: a state class of an optimizer is one row of a table in ``fields``.
"""
