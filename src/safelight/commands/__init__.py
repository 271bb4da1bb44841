"""One module per command of the command line. Heavy imports stand inside the functions, so that --help is instant."""
