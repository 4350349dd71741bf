"""The pure core of the executor: from a run's state and what happened to what happens next. No I/O, no clock."""
