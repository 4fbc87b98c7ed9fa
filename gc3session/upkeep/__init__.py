"""`check` finds what is wrong on disk, and `repair` makes it right again."""
