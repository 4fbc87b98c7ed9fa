"""What is asked of a session: conditions, selection, histories, the log of events, progress."""
