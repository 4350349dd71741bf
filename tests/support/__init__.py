"""What tests of every level share: real backends, whole stacks, waiting."""
