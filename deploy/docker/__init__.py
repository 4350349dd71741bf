"""Images of the services, and a stack of them with Docker Compose."""
