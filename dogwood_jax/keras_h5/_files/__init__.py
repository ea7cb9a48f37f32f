"""Reads and checks the files that Keras writes, and writes files atomically.

``source`` opens an HDF5 file, a ``.keras`` archive or the folder of one. ``hdf5`` reads groups,
arrays and names. Before HDF5 reads a file, ``structure`` checks its addresses and ``heaps`` its
strings. For them, ``binary`` reads bytes, and ``trees`` reads B-trees and fractal heaps. ``atomic``
writes a file completely or not at all. ``errors`` has the errors about files, in text that a
terminal can show.
"""
