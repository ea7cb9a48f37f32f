"""Decides by evaluation whether a growth keeps a network's outputs: ``check``.

The input is two programs and a growth between them, the output is a verdict. Other rooms propose
growths. This room evaluates both programs on random numbers, and relies on no rule about
primitives.

| file | what it does |
|---|---|
| ``claim`` | holds the claim: two programs, and the outputs and entries that must be equal |
| ``reduced`` | makes the claim of a growth, in small sizes if the network is large |
| ``check`` | compares both networks on samples, and decides whether two numbers are equal |
| ``gradients`` | checks that gradients stay finite and reach new units |
| ``twins`` | finds new units that training alone keeps equal |
| ``constant_tables`` | compares arrays that depend on no argument, in the real sizes |
| ``seen`` | records which sides of operations samples have shown; finds numbers that differ |
| ``hidden`` | finds differences between the programs that no sample shows |
| ``cause`` | finds the operation that makes the networks differ |
| ``choices`` | forces sides that no sample takes; holds the number of experts that routers choose |
| ``lines`` | finds the caller's line of code that made an equation |
| ``samples`` | draws random variables and inputs, in many pieces of a function |
| ``evaluate`` | evaluates a program with NumPy in float64 |
| ``run`` | runs a network on a sample; a watch records and nudges its numbers |
| ``spatial`` | chooses smaller images, for windows that still lie inside |
| ``resize`` | rewrites a program in other sizes |

Where to add: a primitive with a shape among its parameters needs ``Primitive.resized``. Other
primitives need nothing, because JAX evaluates primitives without a NumPy function.
"""
