"""The commands, a file for each; program.py imports one when it is used."""
