"""Runs every public function on bad arguments, each call in a worker that may
abort, hang or run out of memory.

    python -m tests.fuzz [part of a name]

prints one line for each call that ended badly: in another error than
ValueError or TypeError, in an abort, or not within `SECONDS` of the processor.
"""

import multiprocessing
import os
import pathlib
import resource
import sys
import time
import warnings

SECONDS = 20
"""Processor seconds after which a call counts as one that hangs, ten times as many
seconds if it sleeps.

Valid calls take less than a second when compiled. Seconds of a clock would count the
other programs of the machine.
"""

MEMORY = 12 * 2**30


def cases(part=""):
    """(name, argument, index of the bad value) of every call."""
    from tests import fuzz_calls

    values = fuzz_calls.bad_values()
    for name, (_, arguments) in fuzz_calls.calls().items():
        if part in name:
            for argument in arguments:
                for i in range(len(values)):
                    yield name, argument, i


def outcome(function, arguments):
    """ "returned", "rejected", or the error that should not have come out.

    Rejected are ValueError, TypeError, and the FloatingPointError of a chain or a
    training that diverged.
    """
    import jax

    try:
        jax.block_until_ready(jax.tree.map(lambda leaf: leaf, function(**arguments)))
        return "returned"
    except (ValueError, TypeError, FloatingPointError) as error:
        return "rejected" if str(error) else f"{type(error).__name__} without a message"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:120]}"


def _work(tasks, pipe):
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("ignore")
    from tests import fuzz_calls

    rows, values = fuzz_calls.calls(), fuzz_calls.bad_values()
    for name, argument, i in tasks:
        function, arguments = rows[name]
        pipe.send("started")
        pipe.send(outcome(function, arguments | {argument: values[i]}))
    pipe.send(None)


def _has_message(pipe, pid, seconds):
    """True once a message is there, False if the process used up its time before."""
    start, deadline = _processor_seconds(pid), time.monotonic() + 10 * seconds
    while not pipe.poll(0.5):
        used = _processor_seconds(pid) - start
        if used > seconds or time.monotonic() > deadline:
            return False
    return True


def _processor_seconds(pid):
    """Time that a process has used. 0 where the system does not say."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(tasks):
    """(task, outcome) of each task, "aborted" or "hangs" where the worker was
    replaced.
    """
    context = multiprocessing.get_context("spawn")
    tasks, done = list(tasks), 0
    while done < len(tasks):
        here, there = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(tasks[done:], there), daemon=True)
        worker.start()
        there.close()
        running = False
        while True:
            try:
                if not _has_message(here, worker.pid, SECONDS if running else 120):
                    yield tasks[done], "hangs"
                    done += 1
                    break
                message = here.recv()
            except EOFError:
                yield (
                    tasks[done],
                    (
                        "aborted, exit "
                        f"{worker.exitcode if worker.join(5) is None else '?'}"
                    ),
                )
                done += 1
                break
            if message is None:
                done = len(tasks)
                break
            running = message == "started"
            if not running:
                yield tasks[done], message
                done += 1
        worker.kill()
        worker.join()


GOOD = ("returned", "rejected")


def main():
    """Fuzz what the command line names."""
    tasks = list(cases(sys.argv[1] if len(sys.argv) > 1 else ""))
    bad = 0
    for count, (task, result) in enumerate(run(tasks), 1):
        if result not in GOOD:
            from tests import fuzz_calls

            bad += 1
            print(
                f"{task[0]}({task[1]}={fuzz_calls.bad_values()[task[2]]!r}): {result}",
                flush=True,
            )
        if count % 500 == 0:
            print(f"# {count} of {len(tasks)} calls, {bad} ended badly", flush=True)
    print(f"# {len(tasks)} calls, {bad} ended badly")


if __name__ == "__main__":
    main()
