"""Benchmarks: Headrace through its REST API, beside what the machine can do at all, in one run."""
