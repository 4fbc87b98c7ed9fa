"""What the operating system and the interpreter give: files, temporary names, forks, sorting on disk."""
