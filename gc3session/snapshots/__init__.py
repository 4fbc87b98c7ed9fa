"""One state of a session as a whole, and the backup that is made of it."""
