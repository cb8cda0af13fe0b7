"""Commands that talk to a service over its public HTTP API."""
