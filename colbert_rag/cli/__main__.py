"""`python -m colbert_rag.cli`, for where the script `colbert-rag` is not installed."""

import sys

from colbert_rag.cli import main

sys.exit(main())
