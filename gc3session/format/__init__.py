"""The bytes of FORMAT.md: the frame of a record, schemas, and the validation that shares no code with them."""
