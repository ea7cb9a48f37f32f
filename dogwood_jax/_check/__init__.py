"""Whether a growth keeps what a network computes, decided by evaluation: ``check``.

In come two programs and a growth between them. Out comes a verdict. Rules propose growths, and this
room decides: it evaluates both programs on random numbers, and uses none of what rules say of
primitives.

| file | what it does |
|---|---|
| ``claim`` | what is claimed: two programs, which outputs must be equal, and where |
| ``reduced`` | the claim of a growth, in small sizes if the network is large |
| ``check`` | both networks side by side, and when two numbers are the same |
| ``gradients`` | whether gradients stay finite and reach new units |
| ``constant_tables`` | arrays that programs compute of nothing, compared in the real sizes |
| ``seen`` | which sides of operations samples have shown, and which numbers differ |
| ``hidden`` | where both programs differ and no sample shows it |
| ``cause`` | which operation makes both networks differ |
| ``choices`` | sides that no sample takes, taken by force; how many experts are chosen |
| ``lines`` | the caller's own line of an equation |
| ``samples`` | random variables and inputs, in many pieces of a function |
| ``evaluate`` | a program computed with NumPy in float64 |
| ``run`` | one of both networks, run on a sample, and what sees and nudges its numbers |
| ``resize`` | a program written again in other sizes |

Where to add: a primitive with a shape among its parameters is an entry in ``resize``. Other
primitives need nothing here, because JAX computes what NumPy has no function for.
"""
