"""The torch that the compiled core was built with, and the one that is there."""


def check_torch(built: str, found: str) -> None:
    """Refuse a torch of another minor version: its C++ interface is another one.

    Args:
        built: version that the core was built with, for example ``2.15.0``.
        found: version that is there, for example ``2.15.1+cu132``.

    Raises:
        ImportError: if the two differ in more than the last number.

    Example:
        >>> check_torch("2.15.0", "2.15.1+cu132")
    """
    minor = ".".join(built.split(".")[:2])
    if found.split(".")[:2] != minor.split("."):
        raise ImportError(
            f"[headkit] expected torch {minor}, which this headkit was built with; found torch "
            f"{found}. Build headkit again (pip install --force-reinstall --no-deps "
            f"--no-build-isolation headkit) or install that torch (pip install 'torch=={minor}.*')."
        )
