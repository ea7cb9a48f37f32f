"""The arrays of a file as those of Flax and back, whichever layout the file has.

In comes an open file; out come layers with their arrays, and the other way round. ``layouts`` says
which layers a file has, ``positions`` finds them where they are named by class and position, and
``config`` checks configs that strangers wrote, ``keras_1`` puts those of Keras 1 as Keras 2 has
them. ``infer`` says what class a layer is of where the file does not, ``shapes`` whether its arrays
fit each other, ``convert`` what they are in Flax, and ``layers`` does all three for every layer.
``write`` makes new files, ``copy`` files like another.

Where to add: what a layer's arrays are in Flax is in its entry, in ``_kinds``; a layout of files is
one in ``layouts``.
"""
