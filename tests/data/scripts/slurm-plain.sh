#!/bin/bash
#SBATCH --job-name=hpcpool-x1-pool-0
#SBATCH --chdir=/home/me/run/b0
#SBATCH --output=/home/me/run/b0/job.out
#SBATCH --error=/home/me/run/b0/job.err
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1

exec true
