"""What crosses the wire: field types, decoding of input messages, and the records that are written."""
