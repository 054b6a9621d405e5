"""A model behind a server: what a client and a server agree on, and the client."""
