"""Core ML: builds ``.mlpackage`` folders for macOS and iOS, and evaluates their programs here."""
