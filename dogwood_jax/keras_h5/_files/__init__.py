"""Files that Keras writes, and what may be wrong with them.

``source`` opens an HDF5 file, a ``.keras`` archive or the folder of one. ``hdf5`` reads groups,
arrays and names, ``heaps`` checks strings before HDF5 reads them, ``atomic`` writes files that
appear whole or not at all. ``errors`` has the one error about a file.
"""
