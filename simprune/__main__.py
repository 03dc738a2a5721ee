"""`python -m simprune` is the command line."""

import sys

from simprune.cli import main

sys.exit(main())
