"""Real servers that tests start: an S3 object store, and a proxy that makes any server fail."""
