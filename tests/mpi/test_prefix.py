from __future__ import annotations

import pytest

from hpcpool.mpi.prefix import Step, launch_prefix, outside_of_steps, program_of, step_of

OPEN_MPI_4 = "mpiexec (OpenRTE) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/\n"
OPEN_MPI_5 = "mpiexec (Open MPI) 5.0.3\n\nReport bugs to https://www.open-mpi.org/community/help/\n"
#: Open MPI does not look at the allocation itself.
NO_LOOK = "--mca ras ^slurm,tm,gridengine,lsf"
HYDRA = "HYDRA build details:\n    Version:                                 4.0.2\n"
INTEL = "Intel(R) MPI Library for Linux* OS, Version 2021.9 Build 20230307\n"


@pytest.mark.parametrize(
    ("hosts", "ranks", "program", "words"),
    [
        (["n1", "n2"], 8, "mpirun", f"mpirun {NO_LOOK} -n 8 --host n1:4,n2:4"),
        (["n1", "n2", "n3"], 4, "mpirun", f"mpirun {NO_LOOK} -n 4 --host n1:2,n2:1,n3:1"),
        (["n1", "n2"], 5, "mpiexec", "mpiexec -n 5 -ppn 3 -hosts n1,n2"),
        (["n1"], 1, "/opt/mpich/bin/mpiexec", "/opt/mpich/bin/mpiexec -n 1 -ppn 1 -hosts n1"),
        (
            ["n1", "n2"],
            5,
            "srun",
            "srun --nodes=2 --ntasks=5 --ntasks-per-node=3 --nodelist=n1,n2 --distribution=block --overlap"
            " --kill-on-bad-exit=1 --input=0",
        ),
    ],
)
def test_the_ranks_are_spread_over_the_hosts(hosts, ranks, program, words):
    assert " ".join(launch_prefix(hosts, ranks, program)) == words


@pytest.mark.parametrize("program", ["mpirun", "mpiexec", "srun"])
def test_hosts_without_a_rank_are_left_out(program):
    assert "n3" not in " ".join(launch_prefix(["n1", "n2", "n3"], 2, program))


def test_the_user_s_options_come_last():
    assert launch_prefix(["n1"], 2, "srun", ["--mpi=pmix"])[-1] == "--mpi=pmix"


@pytest.mark.parametrize(
    ("hosts", "ranks", "program", "problem"),
    [
        ([], 1, "mpirun", "an MPI step needs a host and a rank, not 0 hosts and 1 ranks"),
        (["n1"], 0, "mpirun", "not 1 hosts and 0 ranks"),
        (["n1"], 1, "prun", "with mpirun, mpiexec or srun, not with 'prun'"),
    ],
)
def test_what_cannot_be_started_is_refused(hosts, ranks, program, problem):
    with pytest.raises(ValueError, match=problem):
        launch_prefix(hosts, ranks, program)


@pytest.mark.parametrize(
    ("environment", "step"),
    [
        ({}, None),
        ({"HPCPOOL_NODES": ""}, None),
        ({"HPCPOOL_NODES": "n1,n2", "HPCPOOL_RANKS": "8"}, Step(("n1", "n2"), 8)),
        ({"HPCPOOL_NODES": "n1,n2"}, Step(("n1", "n2"), 2)),
        ({"HPCPOOL_NODES": "n1,n2", "HPCPOOL_RANKS": "0"}, Step(("n1", "n2"), 2)),
    ],
)
def test_the_step_is_what_the_call_s_variables_say(environment, step):
    assert step_of(environment) == step


@pytest.mark.parametrize(
    ("environment", "mpiexec_says", "has_srun", "program"),
    [
        ({}, OPEN_MPI_4, True, ("mpirun",)),
        ({}, OPEN_MPI_5, False, ("mpirun",)),
        ({}, HYDRA, True, ("mpiexec",)),
        ({}, INTEL, False, ("mpiexec",)),
        ({}, None, True, ("srun",)),
        ({"HPCPOOL_MPI": "srun --mpi=pmix"}, OPEN_MPI_4, True, ("srun", "--mpi=pmix")),
        ({"HPCPOOL_MPI": ""}, None, True, ("srun",)),
    ],
)
def test_the_program_is_the_user_s_or_that_of_the_mpi_which_is_there(environment, mpiexec_says, has_srun, program):
    assert program_of(environment, mpiexec_says, has_srun) == program


def test_without_a_program_the_error_says_what_to_do():
    with pytest.raises(ValueError, match="neither mpiexec nor srun on the PATH; load an MPI in worker_init"):
        program_of({}, None, has_srun=False)


def test_the_variables_of_a_step_are_not_handed_on_and_the_user_s_are():
    inside = {
        "SLURM_CPUS_PER_TASK": "64",
        "OMPI_COMM_WORLD_RANK": "0",
        "OMPI_MCA_ess": "pmi",
        "PMIX_RANK": "0",
        "PMI_FD": "5",
        "OMPI_MCA_orte_tag": "1",
    }
    users = {"OMPI_MCA_btl": "self", "OMPI_ALLOW_RUN_AS_ROOT": "1", "PATH": "/bin"}
    assert outside_of_steps(inside | users) == users
