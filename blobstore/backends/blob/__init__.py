"""Object stores: where the bytes are kept."""
