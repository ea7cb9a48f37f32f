"""Modules that say sizes beside their arrays, in other sizes.

In come a module, the arrays in it and new sizes. Out comes the module with its numbers changed,
such as ``out_features``, or the problems, where it is not known which of its numbers are sizes.
``fitting`` tries numbers. ``resizing`` finds those of modules that hold their arrays, as Equinox's
do, and ``remaking`` makes such a module anew by its class; ``of_nnx`` does both for NNX, and
``nnx_function`` has NNX modules as functions of their state. ``of_linen`` has Linen's, which hold
no arrays.
"""
