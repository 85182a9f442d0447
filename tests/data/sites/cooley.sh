#!/bin/bash
#COBALT --jobname hpcpool-b1
#COBALT --cwd /home/me/.hpcpool/runs/hpcpool-x1/b1
#COBALT -o /home/me/.hpcpool/runs/hpcpool-x1/b1/job.out
#COBALT -e /home/me/.hpcpool/runs/hpcpool-x1/b1/job.err
#COBALT --debuglog /home/me/.hpcpool/runs/hpcpool-x1/b1/cobalt.log
#COBALT -q default
#COBALT -A proj
#COBALT -n 2
#COBALT -t 30

cd /home/me/.hpcpool/runs/hpcpool-x1/b1 || exit 1
# A manager on each node, started by MpiExecLauncher(overrides='-f $COBALT_NODEFILE').
