"""Auth over gRPC."""
