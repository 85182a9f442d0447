#!/bin/bash
#PBS -N hpcpool-b1
#PBS -S /bin/bash
#PBS -r n
#PBS -o /home/me/.hpcpool/runs/hpcpool-x1/b1/job.out
#PBS -e /home/me/.hpcpool/runs/hpcpool-x1/b1/job.err
#PBS -q prod
#PBS -A proj
#PBS -l select=10:system=polaris
#PBS -l place=scatter
#PBS -l walltime=00:30:00
#PBS -l filesystems=home
#PBS -M me@x.org

cd /home/me/.hpcpool/runs/hpcpool-x1/b1 || exit 1
# A manager on each node, started by MpiExecLauncher(overrides='--cpu-bind none').
