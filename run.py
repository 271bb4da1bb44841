"""``python run.py``: starts the server from a checkout; takes the options of ``safelight serve``."""

import sys

from safelight.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["serve", *sys.argv[1:]]))
