"""Exact recipes for widths whose size the network computes with, as a norm does.

In come the equations that ``trace`` has read; out come ``Recipe`` objects, which say by which power
of the size each array is multiplied and which constants change. ``find`` reads the program once for
each width and way to fill in new units; ``states`` says how a value of the larger network compares
with the same value before; ``rules`` has one function for each primitive, and ``numbers`` knows new
entries that are computed of zeros alone. Where only multiples are exact, ``obstacles`` says why.
Where the program of one larger network is at hand, ``plan`` asks for recipes again, with that
network's numbers.

Where to add: a primitive is one function in ``rules``. A width that meets a primitive without one
has no recipe.
"""
