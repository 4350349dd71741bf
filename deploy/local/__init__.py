"""The single-machine stack behind `make run`: real PostgreSQL, real NATS and every service, supervised."""
