"""Commands around the library, one a file: `python -m tools.NAME --help`."""
