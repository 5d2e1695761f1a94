"""Run the command line by ``python -m wsiad``."""

from wsiad.cli import main

raise SystemExit(main())
