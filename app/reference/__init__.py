"""Static files of the API reference at `/docs`: Swagger UI, vendored, and the page around it."""
