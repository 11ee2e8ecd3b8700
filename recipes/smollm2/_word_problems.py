"""Short word problems of one to three steps: English stories about small whole numbers, each with its answer."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ivy", "Jack", "Kate", "Liam", "Mia", "Noah",
    "Olivia", "Paul", "Rosa", "Sam", "Tina", "Victor",
)  # fmt: skip
THINGS = ("apples", "marbles", "stickers", "books", "pencils", "cookies", "shells", "cards", "flowers", "coins")


@dataclass(frozen=True)
class Story:
    """A story in which numbers are left out: ``{a}`` and ``{b}`` are two people, ``{things}`` what it is about, and
    ``{0}``, ``{1}``, ... the numbers that ``draw`` makes."""

    text: str
    draw: Callable[[random.Random], tuple[int, ...]]
    answer: Callable[..., int]


@dataclass(frozen=True)
class WordProblem:
    text: str
    answer: int
    num_steps: int


def word_problems(seed: int) -> Iterator[WordProblem]:
    """Problems without end, none of them twice: six in ten take one step, three two, one three."""
    rng, told = random.Random(seed), set()
    while True:
        num_steps = rng.choices((1, 2, 3), (6, 3, 1))[0]
        story = rng.choice(STORIES[num_steps])
        numbers = story.draw(rng)
        a, b = rng.sample(NAMES, 2)
        text = story.text.format(*numbers, a=a, b=b, things=rng.choice(THINGS))
        if text not in told:
            told.add(text)
            yield WordProblem(text, story.answer(*numbers), num_steps)


def _numbers(*bounds: tuple[int, int]) -> Callable[[random.Random], tuple[int, ...]]:
    """Draws a number within each pair of bounds."""
    return lambda rng: tuple(rng.randint(low, high) for low, high in bounds)


def _falling(*bounds: tuple[int, int]) -> Callable[[random.Random], tuple[int, ...]]:
    """The same, and the first is larger by the sum of the others: what is taken away is there."""

    def draw(rng: random.Random) -> tuple[int, ...]:
        first, *others = _numbers(*bounds)(rng)
        return (first + sum(others), *others)

    return draw


def _shared(each: tuple[int, int], among: tuple[int, int]) -> Callable[[random.Random], tuple[int, ...]]:
    """A number that can be shared, and among how many."""

    def draw(rng: random.Random) -> tuple[int, ...]:
        num_each, num_among = _numbers(each, among)(rng)
        return num_each * num_among, num_among

    return draw


ONE_STEP = (
    Story(
        "{a} has {0} {things}. {b} gives {a} {1} more. How many {things} does {a} have now?",
        _numbers((2, 12), (2, 9)),
        lambda x, y: x + y,
    ),
    Story(
        "There are {0} red {things} and {1} blue {things} on the table. How many {things} are on the table?",
        _numbers((2, 12), (2, 9)),
        lambda x, y: x + y,
    ),
    Story(
        "{a} read {0} pages on Monday and {1} pages on Tuesday. How many pages did {a} read in total?",
        _numbers((3, 12), (3, 9)),
        lambda x, y: x + y,
    ),
    Story(
        "{a} had {0} {things} and gave {1} of them to {b}. How many {things} does {a} have left?",
        _falling((2, 9), (2, 9)),
        lambda x, y: x - y,
    ),
    Story(
        "{a} has {0} {things} and {b} has {1}. How many more {things} does {a} have than {b}?",
        _falling((2, 9), (2, 9)),
        lambda x, y: x - y,
    ),
    Story(
        "{a} buys {0} boxes. Each box holds {1} {things}. How many {things} does {a} buy?",
        _numbers((2, 5), (2, 6)),
        lambda x, y: x * y,
    ),
    Story(
        "A ticket costs {1} dollars. How many dollars do {0} tickets cost?",
        _numbers((2, 5), (2, 10)),
        lambda x, y: x * y,
    ),
    Story(
        "{a} shares {0} {things} equally among {1} friends. How many {things} does each friend get?",
        _shared((2, 6), (2, 4)),
        lambda x, y: x // y,
    ),
)
TWO_STEPS = (
    Story(
        "{a} had {0} {things}. {a} found {1} more and then lost {2}. How many {things} does {a} have now?",
        lambda rng: (rng.randint(5, 10), rng.randint(2, 6), rng.randint(2, 5)),
        lambda x, y, z: x + y - z,
    ),
    Story(
        "{a} buys {0} bags with {1} {things} in each bag and gives {2} {things} to {b}. How many {things} does {a} "
        "have left?",
        lambda rng: (rng.randint(2, 4), rng.randint(3, 6), rng.randint(1, 5)),
        lambda x, y, z: x * y - z,
    ),
    Story(
        "{a} earns {0} dollars an hour and works {1} hours. {a} already has {2} dollars. How many dollars does {a} "
        "have after work?",
        _numbers((2, 6), (2, 4), (2, 9)),
        lambda x, y, z: x * y + z,
    ),
    Story(
        "{a} has {0} {things}. {b} has {1} times as many. How many {things} do they have together?",
        _numbers((2, 6), (2, 3)),
        lambda x, y: x + x * y,
    ),
    Story(
        "{a} pays {0} dollars for {1} pens of the same price. How many dollars do {2} of these pens cost?",
        lambda rng: (*_shared((2, 6), (2, 5))(rng), rng.randint(6, 10)),
        lambda x, y, z: x // y * z,
    ),
    Story(
        "{a} has {0} {things}, gives {1} to {b} and puts the rest into 2 boxes, as many into each. How many {things} "
        "are in each box?",
        lambda rng: (lambda each, taken: (2 * each + taken, taken))(rng.randint(2, 9), rng.randint(2, 6)),
        lambda x, y: (x - y) // 2,
    ),
)
THREE_STEPS = (
    Story(
        "{a} buys {0} notebooks for {1} dollars each and {2} pens for {3} dollars each. How many dollars does {a} pay?",
        _numbers((2, 4), (2, 6), (2, 4), (1, 4)),
        lambda w, x, y, z: w * x + y * z,
    ),
    Story(
        "A farm has {0} rows with {1} trees in each row. {2} trees are cut down and {3} new ones are planted. How many "
        "trees are there now?",
        lambda rng: (rng.randint(2, 5), rng.randint(3, 8), rng.randint(1, 5), rng.randint(2, 9)),
        lambda w, x, y, z: w * x - y + z,
    ),
    Story(
        "{a} saves {0} dollars a week for {1} weeks and {b} saves {2} dollars a week for the same time. How many "
        "dollars do they save together?",
        _numbers((2, 8), (2, 5), (2, 8)),
        lambda x, y, z: x * y + z * y,
    ),
    Story(
        "{a} has {0} {things}. {b} has {1} more than {a}. They put them together and share them equally among {2} "
        "children. How many {things} does each child get?",
        lambda rng: (lambda each, n, x: (x, each * n - 2 * x, n))(
            rng.randint(4, 7), rng.randint(2, 3), rng.randint(1, 4)
        ),
        lambda x, y, n: (2 * x + y) // n,
    ),
)
STORIES = {1: ONE_STEP, 2: TWO_STEPS, 3: THREE_STEPS}
