"""Object stores around object stores, each imported on first use."""
