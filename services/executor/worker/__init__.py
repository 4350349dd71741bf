"""The worker process: is woken, claims, runs handlers, reports. Has no database and no long-lived secret."""
