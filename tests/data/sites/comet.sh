#!/bin/bash
#SBATCH --job-name=hpcpool-b1
#SBATCH --chdir=/home/me/.hpcpool/runs/hpcpool-x1/b1
#SBATCH --output=/home/me/.hpcpool/runs/hpcpool-x1/b1/job.out
#SBATCH --error=/home/me/.hpcpool/runs/hpcpool-x1/b1/job.err
#SBATCH --no-requeue
#SBATCH --nodes=2
#SBATCH --no-kill
#SBATCH --ntasks-per-node=1
#SBATCH --partition=compute
#SBATCH --account=abc123
#SBATCH --cpus-per-task=24
#SBATCH --time=00:30:00

# A manager on each node, started by SrunLauncher(overrides='').
