"""Modules that say sizes beside their arrays, as Equinox's and NNX's do, in other sizes.

In come a module, the arrays in it and new sizes; out comes the module with every number changed
that says one of these sizes, or the problems, where it is not known which numbers do. ``resizing``
finds the numbers, ``remaking`` makes a module anew by its class, ``of_nnx`` does both for NNX.
"""
