"""The bytes of FORMAT.md: the frame of a record, schemas, and a validation of them that shares no code with the rest."""
