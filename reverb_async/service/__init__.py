"""What a server does with what travels: it decodes, calls tables, and encodes."""
