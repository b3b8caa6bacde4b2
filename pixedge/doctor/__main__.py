"""The child of `pixedge.doctor.examination`: checks that may take their process along."""

import os
import sys

from pixedge.doctor.examination import serve

if __name__ == "__main__":
    # Libraries print to standard output as they please; the findings get a way of their own.
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.argv[1], own)
