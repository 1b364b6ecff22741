"""``python -m tests.undoubt.integrations.django.project.manage test``."""

from __future__ import annotations

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.undoubt.integrations.django.project.settings"
    execute_from_command_line(sys.argv)
