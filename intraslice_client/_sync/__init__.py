"""Generated from `_async` by tools/make_synchronous_client.py; do not edit."""
