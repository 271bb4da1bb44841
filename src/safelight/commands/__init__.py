"""One module per command that has more to it than a call. Imported only when its command runs."""
