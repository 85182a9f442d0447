export HPCPOOL_NODES_PER_BLOCK=2
# What each node runs.
( umask 077 && part=/scratch/b-0/node.sh.$(uname -n).$$ && mkdir -p /scratch/b-0 && cat > "$part" && mv -f "$part" /scratch/b-0/node.sh ) << 'END_OF_NODE_SCRIPT' || { echo 'hpcpool: cannot write into the folder of the block, /scratch/b-0, on' "$(uname -n)" >&2; exit 1; }
cd /scratch/b-0 || { echo 'hpcpool: the folder of the block, /scratch/b-0, is not there on' "$(uname -n)" >&2; exit 1; }
export OMP_NUM_THREADS=4
export TITLE='it'"'"'s'
trap 'code=$?; echo "hpcpool: on $(uname -n): worker_init ended with code $code, so no manager was started" >&2; [ $code != 0 ] || code=1; exit $code' EXIT
module load gcc
source ~/env.sh

trap - EXIT
command -v /env/bin/python > /dev/null || { echo "hpcpool: on $(uname -n):" 'there is no interpreter /env/bin/python; name one that is there with the option python of the node pool, or have worker_init provide it' >&2; exit 127; }
/env/bin/python -c 'import sys; sys.version_info >= (3, 11) or sys.exit("hpcpool needs Python 3.11 or newer, this is " + sys.version); sys.path[:] = [p for p in sys.path if p] + ['"'"'@ROOT@'"'"']; import hpcpool.processes.manager_process' || { echo "hpcpool: on $(uname -n):" 'the interpreter /env/bin/python cannot run hpcpool (see above); install hpcpool for it, or name another one with the option python of the node pool' >&2; exit 126; }
exec /env/bin/python -O -P @ROOT@/hpcpool/processes/start.py manager /scratch/b-0/connection b-0
END_OF_NODE_SCRIPT
# Starts it on each node; what tells this job to end is passed on, and its end is waited for.
pid=; woken=; trap "woken=1; [ -z \"\$pid\" ] || kill -TERM \$pid 2> /dev/null" TERM INT HUP USR1 USR2 XCPU
bash -c 'pid=; woken=; trap "woken=1; [ -z \"\$pid\" ] || scancel --quiet --signal=TERM \$SLURM_JOB_ID || kill -TERM \$pid" TERM INT HUP USR1 USR2 XCPU; env SLURM_OVERLAP=1 srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpu-bind=none --mpi=none --export=ALL --kill-on-bad-exit=0 --no-kill --wait=0 env -u SLURM_STEP_ID bash /scratch/b-0/node.sh & pid=$!; [ -z "$woken" ] || scancel --quiet --signal=TERM $SLURM_JOB_ID || kill -TERM $pid; woken=1; while [ -n "$woken" ]; do woken=; wait $pid; code=$?; done; exit $code' & pid=$!
[ -z "$woken" ] || kill -TERM $pid 2> /dev/null
woken=1; while [ -n "$woken" ]; do woken=; wait $pid; code=$?; done
exit $code
