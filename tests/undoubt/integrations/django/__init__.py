"""Django's ``atomic`` over two real databases.

================  ============================================================================================
:mod:`.conftest`  configures Django once, and points its databases to new ones for each test.
:mod:`.models`    has one model for each database, without migrations of Django.
:mod:`.urls`      has views for its test client.
:mod:`.project`   is a whole project, whose tests Django's own runner runs.
================  ============================================================================================
"""
