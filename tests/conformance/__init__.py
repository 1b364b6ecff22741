"""Cases that other people wrote, run against this transaction manager."""
