"""Tests of the connections between processes, on real sockets: ``test_handshake.py`` first, then frames,
versions and TLS.

===============  =============================================================================================
:mod:`.support`  connects peers on loopback, with receivers that remember.
:mod:`.attacks`  makes bytes that no honest peer sends.
===============  =============================================================================================
"""
