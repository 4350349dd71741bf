"""Users, projects, roles, tokens, API keys, credentials."""
