"""`python -m pipelines` is `igdit`."""

import sys

from pipelines.cli import main

sys.exit(main())
