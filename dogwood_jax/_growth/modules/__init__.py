"""Resizes modules that store sizes besides their arrays.

The input is a module, its arrays and new sizes. The output is the module with changed numbers, such
as ``out_features``, or problems if it is unclear which of its numbers are sizes. ``fitting`` tries
numbers. ``resizing`` finds numbers of modules that hold their arrays, such as Equinox modules, and
``remaking`` makes such a module again by its class. ``of_nnx`` does both for NNX modules, and
``nnx_function`` makes them functions of their state. ``of_linen`` resizes Linen modules, which hold
no arrays. ``training_mode`` calls modules of both kinds in training mode.
"""
