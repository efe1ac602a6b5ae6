"""What tests of who may call are made of: an identity provider, and Redis."""
