"""``python -m headkit.cli``."""

from headkit.cli import app

if __name__ == "__main__":
    app()
