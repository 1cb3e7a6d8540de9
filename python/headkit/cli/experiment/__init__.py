"""``headkit experiment``."""
