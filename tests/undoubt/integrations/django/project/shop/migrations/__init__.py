"""The migrations of the application: :mod:`.0001_initial` makes its table."""
