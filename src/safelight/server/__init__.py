"""The front process: asyncio and HTTP. Never imports torch, diffusers, transformers or ``safelight.engine``."""
