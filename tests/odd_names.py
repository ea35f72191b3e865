"""Names of files and folders that tools misread: as patterns, formats, variables, markup, or not as UTF-8."""

import os

PARTS = (" a b ", "'\"", "a\nb", "[x]{a,b}*?", "%d#$HOME", "<b>&", os.fsdecode(b"\xff"), "é日", "x" * 180)
ODD = "[x] {a,b}*?%d#$é日'\"\n" + os.fsdecode(b"\xff")  # a folder


def odd_name(number: int) -> str:
    """Returns a name that is different for each number; the numbers keep their order."""
    return f"{number:03d}{PARTS[number % len(PARTS)]}"
