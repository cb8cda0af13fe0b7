"""Reports of a run: their JSON schema, the HTML page and its figures."""
