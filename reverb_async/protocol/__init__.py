"""What travels between client and server, whatever carries it."""
