#!/bin/bash
#OAR -n hpcpool-x1-pool-0
#OAR -O /home/me/run/b0/job.out
#OAR -E /home/me/run/b0/job.err
#OAR -l /nodes=4/cpu=1/core=4,walltime=25:00:00
#OAR -q night
#OAR --project proj
#OAR -p cluster='nova' and memnode >= 32768
#OAR -t besteffort
#OAR -t night
#OAR --notify mail:me@x

exec true
