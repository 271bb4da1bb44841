"""How the embedded model ``safelight/shapes`` was made: pictures that we draw, captions that we write, one command."""
