"""From one session to another: dumps, loading them, differences, and moving to another store."""
