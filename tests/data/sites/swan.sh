#!/bin/bash
#PBS -N hpcpool-b1
#PBS -S /bin/bash
#PBS -r n
#PBS -o /home/me/.hpcpool/runs/hpcpool-x1/b1/job.out
#PBS -e /home/me/.hpcpool/runs/hpcpool-x1/b1/job.err
#PBS -l nodes=2
#PBS -l walltime=00:30:00

cd /home/me/.hpcpool/runs/hpcpool-x1/b1 || exit 1
# A manager on each node, started by AprunLauncher(overrides='').
