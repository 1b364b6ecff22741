"""Tests of the benchmark: a short run of all contenders, and how figures are computed."""
