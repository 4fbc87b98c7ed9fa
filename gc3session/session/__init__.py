"""`Session`: the collection of tasks in a directory."""
