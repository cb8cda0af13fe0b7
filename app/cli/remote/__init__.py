"""Commands that speak to a service over HTTP; they know nothing but its public API."""
