"""What generating and embedding mean here, whoever does it."""
