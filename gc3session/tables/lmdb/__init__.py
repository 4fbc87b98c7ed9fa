"""The tables on LMDB: an environment of files inside a directory."""
