"""Files that Keras writes, and what may be wrong with them.

``source`` opens an HDF5 file, a ``.keras`` archive or the folder of one. ``hdf5`` reads groups,
arrays and names. Before HDF5 reads a file, ``structure`` checks where it leads, and ``heaps`` its
strings, by the bytes in ``binary`` and what ``trees`` hold. ``atomic`` writes
files that appear whole or not at all. ``errors`` has the errors about files, in text that a
terminal can show.
"""
