"""An application with one model, which both databases have.

=================  ===========================================================================================
:mod:`.models`     has the model.
:mod:`.migrations` makes its table.
:mod:`.cases`      has the tests, which only ``manage.py test`` runs.
=================  ===========================================================================================
"""
