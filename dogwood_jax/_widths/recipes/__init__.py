"""Exact recipes for widths whose size the network computes with, as a norm does.

In come the equations that ``trace`` has read. Out come ``Recipe`` objects, which say by which power
of the size each array is multiplied and which constants change.

| file | what it does |
|---|---|
| ``search`` | reads the program once for each width and way to fill in new units |
| ``reading`` | how a value of the larger network compares with the same value before |
| ``powers`` | what each primitive makes of powers and new entries |
| ``new_numbers`` | new entries that are computed of zeros alone |
| ``no_means`` | why only multiples are exact |

Where the program of one larger network is at hand, ``plan`` asks for recipes again, with that
network's numbers.

Where to add: a primitive is one function in ``powers``. A width that meets a primitive without one
has no recipe.
"""
