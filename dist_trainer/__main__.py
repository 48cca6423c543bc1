import sys

from dist_trainer.cli import main

sys.exit(main())
