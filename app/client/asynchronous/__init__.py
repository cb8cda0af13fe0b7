"""The client as it is written; `synchronous` beside it is made of it."""
