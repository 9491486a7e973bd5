"""What grows when the same policy serves more replicas and more routers. Drives the server's own policy in virtual time."""
