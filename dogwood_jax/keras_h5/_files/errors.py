"""The one error of this package that is about a file."""


class KerasFileError(ValueError):
    """A file that does not hold Keras weights in a layout known here."""
