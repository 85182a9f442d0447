#!/bin/bash
#OAR -n hpcpool-x1-pool-0
#OAR -O /home/me/run/b0/job.out
#OAR -E /home/me/run/b0/job.err
#OAR -l /nodes=1

exec true
