"""The same policy as the server's, in virtual time."""
