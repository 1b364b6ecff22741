"""The plugin of pytest, under a pytest of its own."""
