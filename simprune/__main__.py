"""`python -m simprune` is the command line."""

import sys

from simprune.cli.main import main

sys.exit(main())
