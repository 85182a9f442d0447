#!/bin/bash
#SBATCH --job-name=hpcpool-x1-pool-0
#SBATCH --chdir="/a b"
#SBATCH --output="/a b/100%%.out"
#SBATCH --error="/a \"b\\/err"
#SBATCH --no-requeue
#SBATCH --nodes=4
#SBATCH --no-kill
#SBATCH --ntasks-per-node=1
#SBATCH --partition=gpu,long
#SBATCH --account=proj
#SBATCH --qos=high
#SBATCH --constraint="[rack1|rack2]"
#SBATCH --reservation="maint 1"
#SBATCH --exclusive
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --gres=nvme:1
#SBATCH --gpus-per-node=a100:4
#SBATCH --time=01:30:00
#SBATCH --mail-type=FAIL
#SBATCH --comment=x

exec true
