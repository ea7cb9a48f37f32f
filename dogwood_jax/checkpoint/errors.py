"""What is raised for a file that is damaged, hostile or of another kind: ``CheckpointError``."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read: the message says which file, what was expected, what came."""
