"""One module per command that has more to it than a call, and what they show. Imported only when a command runs."""
