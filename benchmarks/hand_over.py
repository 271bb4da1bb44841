"""What the front starts as a light worker: passes its socket on to ``light_workers.py`` and is a sleeping ``cat`` then.

``python -S -E hand_over.py ADDRESS --fd=N ...``. It ends when the front kills it, or when the other side lets it go.
"""

from __future__ import annotations

import os
import socket
import sys


def main() -> None:
    """Does not return: the process becomes another program, which needs a megabyte instead of ten."""
    address, *options = sys.argv[1:]
    (descriptor,) = (int(option.removeprefix("--fd=")) for option in options if option.startswith("--fd="))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    socket.send_fds(connection, [b"w"], [descriptor])
    os.close(descriptor)  # else the front would not see the other side close it
    os.dup2(connection.fileno(), 0)
    os.execvp("cat", ["cat"])


if __name__ == "__main__":
    main()
