"""The worker process: all of torch. Never imports ``safelight.server``."""
