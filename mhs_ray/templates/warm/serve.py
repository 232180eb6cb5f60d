"""Load the model once, then run `main` for each scan: give the runnable container the variable MHS_WARM=1."""

import sys

import main
from mhs_warm import scans

if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # lines show while we run
    # What takes long and is the same for every scan goes here: weights, compiled kernels.
    for scan in scans():
        with scan:
            sys.exit(main.main(sys.argv[1:]))  # ends this scan, not the program
