"""Which records belong to which session, and the mirror of that in `session_ids.txt`."""
