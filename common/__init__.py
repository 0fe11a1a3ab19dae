"""The parts that know nothing of the RSNA task."""

import os

# Else the import of albumentations asks a package index for a newer version, for up to two seconds.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
