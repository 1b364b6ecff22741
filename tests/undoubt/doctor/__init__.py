"""Tests of the checks of ``undoubt doctor``: each piece, then on real servers and clusters."""
