"""gRPC: generated messages, the codec of hot messages, the HTTP/2 path, and statuses as errors."""
