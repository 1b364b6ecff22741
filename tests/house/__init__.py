"""Tests of the project's text, and the detectors that the proof ``house`` counts with.

====================  ========================================================================================
:mod:`.tree`          lists the files of the project.
:mod:`.reading`       finds circles of imports, classes of one name, reply loops, and unmapped modules.
:mod:`.dead`          finds dead code with vulture.
:mod:`.architecture`  reads the sections of ARCHITECTURE.md that are compared with the code.
====================  ========================================================================================
"""
