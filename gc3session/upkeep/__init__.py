"""`check` and `repair`: what is wrong on disk, and mending it."""
