"""Data parallelism: the same program in every rank, and one collective, a sum.

On a CPU a small model gains little from two threads in one process, because every small operation
waits for both.  Two processes of one thread each lose nothing.  So `launch` forks workers after
torch is imported, so that they share its memory, and joins them over gloo.  Under torchrun it joins
the ranks that torchrun started.  Every rank holds the same parameters and draws the same problems.
Each samples and differentiates its share.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from minipost.errors import MinipostError


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce(*tensors):
    """Sum each tensor over all ranks, in place.  If each fills its part of zeros, this gathers."""
    if world() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def share(items):
    """This rank's contiguous share of a sequence, as even as can be."""
    return items[len(items) * rank() // world() : len(items) * (rank() + 1) // world()]


def default_workers(device):
    """One process per core, at most 4, on Linux CPUs; one elsewhere (forking is unsafe there)."""
    if device != "cpu" or not sys.platform.startswith("linux"):
        return 1
    return min(4, len(os.sched_getaffinity(0)))


def join(rank_, world_, store):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=store, rank=rank_, world_size=world_)


def launch(main, workers):
    """Run main() in `workers` ranks and return rank 0's result, which stays in this process.

    An error in rank 0 ends the others.  The end of another rank ends rank 0 with MinipostError,
    which gives that rank's error if it is known.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        try:
            return main()
        finally:
            dist.destroy_process_group()
    if workers == 1:
        return main()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="minipost-") as folder:
        children = [fork(main, r, workers, folder) for r in range(1, workers)]
        try:
            join(0, workers, store(folder, workers))
            return main()
        except RuntimeError as error:
            said = [path.read_text() for path in sorted(Path(folder).glob("error*"))]
            if not said and "Connection" not in str(error):
                raise
            raise MinipostError(said[0] if said else f"a worker process died ({error})") from error
        finally:
            for pid in children:  # a dead child can be signalled until it is waited for
                os.kill(pid, signal.SIGTERM)
            for pid in children:
                os.waitpid(pid, 0)
            if dist.is_initialized():
                dist.destroy_process_group()


def store(folder, workers):
    return dist.FileStore(os.path.join(folder, "store"), workers)


def fork(main, rank_, workers, folder):
    """Fork another rank.  The child never returns from here: whatever happens, it exits."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides when all stop
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        join(rank_, workers, store(folder, workers))
        main()
        code = 0
    except MinipostError as error:  # rank 0 reports it, whether it meets the same error or not
        Path(folder, f"error{rank_}").write_text(str(error))
    except Exception as error:
        if "Connection" not in str(error):  # a closed connection only says that rank 0 has gone
            print(f"worker {rank_}: {error}", file=sys.stderr)
    finally:
        os._exit(code)
