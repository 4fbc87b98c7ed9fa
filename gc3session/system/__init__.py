"""What the operating system and the interpreter give: files, temporary names, forks, signals, sorting on disk."""
