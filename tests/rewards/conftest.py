"""A file of verifiers that misbehave as they are told to."""

import textwrap

import pytest

from tests.rewards.sandboxes import sandbox  # noqa: F401

# A response is a word that says what the verifier does with it; any other response is judged by strict_boxed.
RECIPE = """
    import ctypes, os, re, resource, signal, subprocess, sys, time
    from fastgrpo.rewards import known_answers, strict_boxed

    hoard = []

    def naughty(response, answer):
        if response in globals():
            return globals()[response](answer)
        return strict_boxed(response, answer)

    def spin(answer):
        while True:
            pass

    def spin_in_c(answer):
        re.match("(a+)+$", "a" * 50 + "b")

    def spin_on_a_big_integer(answer):
        return 3 ** 10 ** 9

    def nap(answer):
        time.sleep(0.2)
        return True

    def leave(answer):
        os._exit(0)

    def crash(answer):
        ctypes.string_at(0)

    def recurse(answer):
        def deeper():
            return deeper()
        deeper()

    def say_exit(answer):
        sys.exit(answer)

    def complain(answer):
        raise KeyError(answer)

    def hoard_memory(answer):
        while True:
            hoard.append(bytes(10**7))

    def crash_once(answer):
        try:
            os.close(os.open(answer, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return True
        crash(answer)

    def note_and_leave(answer):
        with open(answer, "a") as file:
            file.write(f"{os.getpid()} ")
        os._exit(0)

    def close_everything(answer):
        os.closerange(0, 100)

    def shout(answer):
        for stream in (sys.stdout, sys.stderr):
            print("\\\\boxed{" * 100_000, file=stream, flush=True)
        os.write(1, b"1" * 100_000)
        subprocess.run([sys.executable, "-c", "print('0' * 100_000)"])
        return True

    def read_input(answer):
        return sys.stdin.read() == ""

    def start_a_child_and_hang(answer):
        child = subprocess.Popen(["sleep", "1000"])
        with open(answer, "w") as file:
            file.write(str(child.pid))
        spin(answer)

    def ask_to_end(answer):
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    def outrun_the_cpu_limit(answer):
        os.kill(os.getpid(), signal.SIGXCPU)

    def cpu_time_is_limited(answer):
        return 0 < resource.getrlimit(resource.RLIMIT_CPU)[0] < 1000

    def torch_is_loaded(answer):
        return "torch" in sys.modules

    def reward(answer):
        return -1.0

    def text(answer):
        return "-1.0"

    def no_answer(answer):
        return "unformatted"

    def another_word(answer):
        return "Unformatted"

    def map_memory(answer):
        import mmap
        return [mmap.mmap(-1, 2**29) for _ in range(8)]

    def echo(response, answer):
        return response == answer

    def always(response, answer):
        return True

    @known_answers(("anything", "1", False))
    def decorated(response, answer):
        return True

    def misspelt(response, answer):
        return respones == answer
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "recipe.py"
    path.write_text(textwrap.dedent(RECIPE))
    return str(path)
