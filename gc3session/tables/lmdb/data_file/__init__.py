"""The data file of an LMDB environment, read without LMDB: what a check or a repair needs, and whether LMDB may open it."""
