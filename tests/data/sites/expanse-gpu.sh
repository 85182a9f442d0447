#!/bin/bash
#SBATCH --job-name=hpcpool-b1
#SBATCH --chdir=/home/me/.hpcpool/runs/hpcpool-x1/b1
#SBATCH --output=/home/me/.hpcpool/runs/hpcpool-x1/b1/job.out
#SBATCH --error=/home/me/.hpcpool/runs/hpcpool-x1/b1/job.err
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --partition=gpu
#SBATCH --account=abc123
#SBATCH --cpus-per-task=40
#SBATCH --mem=0
#SBATCH --gpus-per-node=4
#SBATCH --time=36:00:00

# A manager on each node, started by SingleNodeLauncher().
