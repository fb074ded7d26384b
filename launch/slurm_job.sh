#!/bin/bash
# One run of an array. Slurm asks everything in a job to end at once; this stays until the
# run has saved and is back in the queue.
trap : TERM
"$@"
