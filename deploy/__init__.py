"""How Headrace is put on machines."""
