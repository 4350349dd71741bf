"""Who may do what: accounts, sessions, projects, API keys, credentials. Knows no transport and no database."""
