#!/bin/bash
#COBALT --jobname hpcpool-b1
#COBALT --cwd /home/me/.hpcpool/runs/hpcpool-x1/b1
#COBALT -o /home/me/.hpcpool/runs/hpcpool-x1/b1/job.out
#COBALT -e /home/me/.hpcpool/runs/hpcpool-x1/b1/job.err
#COBALT --debuglog /home/me/.hpcpool/runs/hpcpool-x1/b1/cobalt.log
#COBALT -q debug-cache-quad
#COBALT -A proj
#COBALT --attrs filesystems=home,theta-fs0
#COBALT -n 8
#COBALT -t 30

cd /home/me/.hpcpool/runs/hpcpool-x1/b1 || exit 1
# A manager on each node, started by AprunLauncher(overrides='-d 256 -j 4').
