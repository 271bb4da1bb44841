"""``python run.py``: starts the server from a checkout; takes the options of ``safelight serve``."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    try:
        from safelight.cli import main
    except ModuleNotFoundError as error:
        own_python = Path(__file__).parent / ".venv" / "bin" / "python"
        if not own_python.exists() or Path(sys.prefix) == own_python.parents[1].resolve():
            raise SystemExit(f"{error}: run `make setup` first") from None
        os.execv(own_python, [str(own_python), *sys.argv])
    raise SystemExit(main(["serve", *sys.argv[1:]]))
