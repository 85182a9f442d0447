#!/bin/bash
# flux: --job-name=hpcpool-x1-pool-0
# flux: --cwd=/home/me/run/b0
# flux: --output=/home/me/run/b0/job.out
# flux: --error=/home/me/run/b0/job.err
# flux: --nodes=1
# flux: --exclusive

exec true
