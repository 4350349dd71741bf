"""The border of the service: gRPC."""
