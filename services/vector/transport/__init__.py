"""The vector service's gRPC face, and its calls to the llm service."""
