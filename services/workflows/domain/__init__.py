"""What workflows are: definitions, their validation, and the use cases over them. No I/O."""
