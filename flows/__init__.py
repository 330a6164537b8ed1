"""Prefect flows: they launch and decide; the work itself is in `mario.jobs`."""
