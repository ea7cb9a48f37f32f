"""``grow_opt_state`` and ``growable``: the optimizer's state grows, too, and training goes on.

In come the state, the growth and ``tx``. Out comes the state for the grown parameters.

| file | what it does |
|---|---|
| ``opt_state`` | ``grow_opt_state``: maps every field by the adjoint of the growth |
| ``fields`` | the meaning of each field of a state; the table of Optax's state classes |
| ``kept`` | the arrays of the larger state, and how each is made |
| ``larger_params`` | the larger network's parameters, as the optimizer sees them |
| ``factored`` | second moments stored as means along two axes |
| ``growable`` | the wrapper: one step count for each cohort of entries, or for each unit |
| ``renewed_state`` | a state in which the entries of some units are reset |
| ``step_counts`` | step counts by cohort, and the share of a unit that each copy carries |
| ``by_cohort`` | an optimizer's update in which each entry has the step count of its cohort |

Where to add: a state class of an optimizer is one row of the table in ``fields``.
"""
