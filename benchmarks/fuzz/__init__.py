"""Whatever bytes a client sends: a router's own HTTP and gRPC servers must neither answer 500, hang, nor grow."""
