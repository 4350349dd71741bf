"""gRPC in both directions: the service that is served, and the catalogue of node types that is read."""
