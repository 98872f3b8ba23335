"""Children that are killed, cheaply: one process imports JAX, and each child
is a fork of it from before it computes.
"""

import json
import os
import pathlib
import subprocess
import sys
import traceback

ROOT = pathlib.Path(__file__).parents[1]


class Nursery:
    """Runs functions of a module in child processes and reports how each ended.

    Args:
      module: Name of the module, which must not compute when it is imported.
    """

    def __init__(self, module: str):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        }
        flags = environment.get(
            "XLA_FLAGS", ""
        ).split()  # one device, and the same arithmetic as here
        environment["XLA_FLAGS"] = " ".join(
            flag for flag in flags if "device_count" not in flag
        )
        command = [
            sys.executable,
            "-c",
            f"from tests import forked; forked.serve({module!r})",
        ]
        self._server = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: pathlib.Path, *calls: tuple) -> list[tuple[int, str, str]]:
        """Exit status, output and errors of children that run side by side.

        Args:
          folder: For their output.
          *calls: Of each child the function's name, then its arguments, JSON values.
        """
        folder.mkdir(exist_ok=True)
        names = [str(folder / str(i)) for i in range(len(calls))]
        self._server.stdin.write(
            json.dumps([[name, *call] for name, call in zip(names, calls, strict=True)])
            + "\n"
        )
        self._server.stdin.flush()
        statuses = json.loads(self._server.stdout.readline())
        read = lambda name: pathlib.Path(name).read_text()
        return [
            (status, read(f"{n}.out"), read(f"{n}.err"))
            for n, status in zip(names, statuses, strict=True)
        ]

    def close(self) -> None:
        """Wait for the process, so that its time is counted."""
        self._server.stdin.close()
        self._server.wait()


def serve(module: str) -> None:
    """For each line of the input fork children, wait for them, and write their
    exit statuses.
    """
    functions = vars(__import__(module))
    for line in sys.stdin:
        children = [_fork(functions, *call) for call in json.loads(line)]
        print(
            json.dumps(
                [
                    os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    for child in children
                ]
            ),
            flush=True,
        )


def _fork(functions, output, name, *arguments):
    if child := os.fork():
        return child
    for descriptor, suffix in ((1, "out"), (2, "err")):
        os.dup2(
            os.open(f"{output}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            descriptor,
        )
    status = 1
    try:
        functions[name](*arguments)
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
