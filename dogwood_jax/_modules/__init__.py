"""Modules that say sizes beside their arrays, as Equinox's and NNX's do, in other sizes.

In come a module, the arrays in it and new sizes. Out comes the module with its numbers changed,
such as ``out_features``, or the problems, where it is not known which of its numbers are sizes.
``resizing`` finds the numbers, ``remaking`` makes a module anew by its class, ``fitting`` tries its
numbers, ``of_nnx`` does all of this for NNX. ``nnx_function`` has NNX modules as functions of their state.
"""
