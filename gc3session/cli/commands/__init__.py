"""The commands, a file for each; program.py imports the one that is used."""
