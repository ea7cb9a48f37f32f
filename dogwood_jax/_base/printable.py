"""Text that a terminal can show, whatever characters the names in a file contain."""


def printable(text: str, keep: str = "") -> str:
    r"""Returns text in which unprintable characters, such as cursor controls, are escaped.

    Args:
        text: any text.
        keep: characters that stay as they are.

    Example:
        >>> printable("dense\x1b[2J")
        'dense\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )
