#!/bin/bash
#$ -S /bin/bash
#$ -N hpcpool-x1-pool-0
#$ -wd /home/me/run/b0
#$ -o /home/me/run/b0/job.out
#$ -e /home/me/run/b0/job.err
#$ -r n
#$ -w e

exec true
