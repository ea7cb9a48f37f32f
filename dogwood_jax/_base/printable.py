"""Text that a terminal can show, whatever names in a file are made of."""


def printable(text: str, keep: str = "") -> str:
    r"""Returns text with escapes for what would move the cursor, or have no sign of its own.

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
