"""Made of `asynchronous` by tools/make_synchronous_client.py; not edited."""
