"""Converts the arrays of files of any layout to those of Flax and back.

``layouts`` lists the layers of an open file, and ``positions`` finds layers that are named by class
and position. ``config`` checks configs, which may be malicious, and ``keras_1`` translates configs
of Keras 1 to Keras 2. ``infer`` finds the class of a layer if the file lacks it, ``shapes`` checks
that arrays fit each other, ``convert`` maps arrays to Flax, and ``layers`` does all three for every
layer, inner models included. ``write`` makes new files, ``copy`` makes files like another.

Where to add: the mapping of a layer's arrays to Flax is in the layer's entry in ``_kinds``; a file
layout belongs in ``layouts``.
"""
