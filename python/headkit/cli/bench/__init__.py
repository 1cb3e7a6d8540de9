"""The command ``headkit bench``."""
