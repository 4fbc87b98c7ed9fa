"""Between attrs objects and the bytes of records: values, the codec, schemas in use, numbers, the batch."""
