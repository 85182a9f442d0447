#!/bin/bash
#SBATCH --job-name=hpcpool-b1
#SBATCH --chdir=/home/me/.hpcpool/runs/hpcpool-x1/b1
#SBATCH --output=/home/me/.hpcpool/runs/hpcpool-x1/b1/job.out
#SBATCH --error=/home/me/.hpcpool/runs/hpcpool-x1/b1/job.err
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --account=m1234
#SBATCH --qos=debug
#SBATCH --constraint=gpu
#SBATCH --cpus-per-task=128
#SBATCH --gpus-per-node=4
#SBATCH --time=00:10:00

# A manager on each node, started by SingleNodeLauncher().
