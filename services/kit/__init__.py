"""Plumbing that every service shares. Knows no service and no contract; something enters on its second user."""
