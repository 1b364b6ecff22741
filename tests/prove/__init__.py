"""Proofs: runs on real servers and real processes that print one line of JSON.

``python -m tests.prove NAME [options]``. Each proof is a module with ``add_arguments`` and ``main``.
"""
