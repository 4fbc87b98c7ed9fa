"""The bytes of FORMAT.md: the frame of a record, and schemas."""
