#!/bin/bash
#CONDOR universe = vanilla
#CONDOR batch_name = hpcpool-b1
#CONDOR executable = /bin/bash
#CONDOR transfer_executable = false
#CONDOR initialdir = /tmp/hpcpool-me/hpcpool-x1/b1
#CONDOR should_transfer_files = YES
#CONDOR when_to_transfer_output = ON_EXIT
#CONDOR transfer_input_files = /tmp/hpcpool-me/hpcpool-x1/b1/
#CONDOR transfer_output_files = ""
#CONDOR output = /tmp/hpcpool-me/hpcpool-x1/b1/job.out
#CONDOR error = /tmp/hpcpool-me/hpcpool-x1/b1/job.err
#CONDOR request_cpus = 1
#CONDOR request_memory = 2GB
#CONDOR request_disk = 4GB
#CONDOR requirements = HAS_SINGULARITY == True
#CONDOR want_graceful_removal = true
#CONDOR kill_sig = SIGTERM
#CONDOR job_max_vacate_time = 60
#CONDOR periodic_remove = (JobStatus == 1 && NumJobStarts > 0) || (JobStatus == 5 && HoldReasonCode =!= 1 && HoldReasonCode =!= 15 && HoldReasonCode =!= 16) || (JobStatus == 2 && time() - EnteredCurrentStatus > 14400)
#CONDOR +HpcpoolWalltime = 14400
#CONDOR +ProjectName = "MyProject"
#CONDOR queue 1

# The files of the block have come with the job: they go where they are looked for.
folder=/tmp/hpcpool-me/hpcpool-x1/b1
if [ ! -e "$folder" ]; then
  umask 077
  mkdir -p "${folder%/*}" && mkdir "$folder" && cp -R ./. "$folder" || exit 1
  trap 'rm -rf "$folder"' EXIT
fi
# The first folder that it goes to is the submitter's: where that is not here, the job stays in its own.
cd() { unset -f cd; cd "$@" || cd "$_CONDOR_SCRATCH_DIR"; }
# A manager on each node, started by SingleNodeLauncher().
