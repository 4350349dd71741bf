"""The outside world: inference servers, and models loaded by this service."""
