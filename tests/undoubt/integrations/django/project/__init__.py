"""A project of Django, whose tests are run by its own ``manage.py test``.

=================  ===========================================================================================
:mod:`.settings`   has two databases, and undoubt over them, from a file of settings.
:mod:`.manage`     is the project's ``manage.py``.
:mod:`.shop`       is its application, with a migration and tests.
=================  ===========================================================================================
"""
