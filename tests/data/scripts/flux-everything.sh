#!/bin/bash
# flux: --job-name=hpcpool-x1-pool-0
# flux: '--cwd=/a b'
# flux: --output=/home/me/run/b0/job.out
# flux: --error=/home/me/run/b0/job.err
# flux: --nodes=4
# flux: --nslots=4
# flux: --cores-per-slot=16
# flux: --gpus-per-slot=2
# flux: --exclusive
# flux: --queue=pbatch
# flux: --bank=proj
# flux: '--requires=hosts:node[1-4] | bigmem'
# flux: --time-limit=5401s
# flux: --urgency=20

exec true
