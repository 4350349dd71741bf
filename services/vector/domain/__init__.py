"""Collections, records and search, without a framework."""
