#!/bin/bash
#$ -S /bin/bash
#$ -N hpcpool-x1-pool-0
#$ -wd "/a b"
#$ -o /home/me/run/b0/job.out
#$ -e /home/me/run/b0/job.err
#$ -r n
#$ -w e
#$ -q long.q,all.q
#$ -P proj
#$ -pe mpi16 64
#$ -l h_rt=5401
#$ -l mem_free=4096M
#$ -l gpu=2
#$ -l arch=lx-amd64
#$ -l scratch
#$ -V
#$ -M me@x

exec true
