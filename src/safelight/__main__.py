"""``python -m safelight``: the same as the console script ``safelight``."""

from safelight.cli import main

raise SystemExit(main())
