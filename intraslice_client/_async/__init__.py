"""Asynchronous client, the source of the generated `_sync`."""
