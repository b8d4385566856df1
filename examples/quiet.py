"""A command whose output is cut off, by `| head` for one, ends quietly."""

import os
import sys
from collections.abc import Callable


def until_the_reader_leaves(command: Callable[[], None]) -> None:
    """Run a command; exit with 1 and no traceback when nobody reads its output any more."""
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        sys.exit(1)
