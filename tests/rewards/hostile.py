"""Responses that try to hang, crash, fill or take over the process that judges them."""

import random
from collections.abc import Callable, Iterator

SEED = 7
ANSWERS = ("31415926", "\\frac{27182}{81828}", "x^2+161803x", "(1414,2135)")  # none of them is in any response
MEGABYTE = 10**6
KNOWN_HANG = "\\dfrac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}"  # huggingface/Math-Verify issue 65

Family = Callable[[random.Random, str], str]


def unbalanced(rng: random.Random, _: str) -> str:
    pieces = [
        "{",
        "}",
        "\\{",
        "\\}",
        "\\left(",
        "\\right]",
        "\\boxed{",
        "(",
        ")",
        "$",
        "$$",
        "\\(",
        "\\]",
        "\\frac{",
        "1",
        "x",
    ]
    return "".join(rng.choices(pieces, k=rng.choice([5, 50, 500, 5000])))


def nested(rng: random.Random, _: str) -> str:
    opening, inner, closing = rng.choice(
        [("{", "1", "}"), ("\\frac{", "1", "}{2}"), ("\\sqrt{", "2", "}"), ("(", "1", ")"),
         ("\\left(", "x", "\\right)"),
         ("\\boxed{", "7", "}"), ("\\text{", "a", "}"), ("\\sqrt", "2", ""), ("\\frac", "12", ""), ("-", "1", "")]
    )  # fmt: skip
    levels = rng.choice([10, 40, 300, 3000])
    return opening * levels + inner + closing * rng.choice([levels, levels - 1])


def huge_numbers(rng: random.Random, _: str) -> str:
    tower = rng.randrange(3, 8)
    ways = [
        KNOWN_HANG,
        "^".join(["9"] * tower),
        "**".join(["9"] * tower),
        "9^{" * tower + "9" + "}" * tower,
        "(" * tower + "9^9" + ")^9" * tower,
        f"{rng.randrange(10**6)}!",
        "9" + "!" * tower,
        f"10^{{{rng.randrange(10**9)}}}",
        f"2^{rng.randrange(10**9)}-2^{rng.randrange(10**9)}",
        "\\binom{100000000}{50000000}",
        f"\\sum_{{n=1}}^{{{10**9}}} \\frac{{1}}{{n^2}}",
        f"\\prod_{{n=1}}^{{{10**7}}} n",
        "\\int_0^1 x^{x^{x^x}} dx",
        "\\gcd(10^{1000000},2^{1000000})",
        "\\lfloor \\pi \\cdot 10^{100000} \\rfloor",
        f"(x+1)^{{{rng.randrange(10**4, 10**6)}}}",
        f"(1+\\sqrt{{2}})^{{{rng.randrange(10**4)}}}",
        "\\sqrt[99999999]{2}",
        "e^{e^{e^{e^{10}}}}",
        "1e999999999",
        "0.1e-99999999",
        f"\\sin(10^{{{rng.randrange(10**5)}}})",
    ]
    return rng.choice(ways)


def digits(rng: random.Random, _: str) -> str:
    size = rng.choice([5000, 50_000, MEGABYTE])
    ways = [
        "7" * size,
        "1," * (size // 2),
        "1,234" * (size // 5),
        "0." + "3" * size,
        "-" + "9" * size,
        "0" * size + "1",
    ]
    ways += ["7" * size + "/" + "3" * size, "\\frac{" + "7" * size + "}{3}", "1 " * (size // 2), "1e" + "9" * size]
    return rng.choice(ways)


def control_characters(rng: random.Random, _: str) -> str:
    characters = [chr(code) for code in (*range(32), 0x7F, 0x85, 0x200B, 0x200D, 0x2028, 0x202E, 0xFEFF, 0xFFFF)]
    return "".join(rng.choices([*characters, "4", "2", "x", "{", "}"], k=rng.choice([3, 30, 3000])))


def code(rng: random.Random, sentinel: str) -> str:
    call = f"open({sentinel!r},'w').close()"
    ways = [
        f"__import__('os').system('touch {sentinel}')",
        f'__import__("pathlib").Path({sentinel!r}).touch()',
        call,
        f"exec({call!r})",
        f"eval({call!r})",
        f"(lambda: {call})()",
        f"[c for c in ().__class__.__base__.__subclasses__()][0] or {call}",
        f"1 if {call} else 2",
        f"sqrt({call})",
        f"Integer({call})",
        f"x={call}",
        f"`touch {sentinel}`",
        f"$(touch {sentinel})",
        f"; touch {sentinel} #",
        f"\\write18{{touch {sentinel}}}",
        f"\\immediate\\write18{{touch {sentinel}}}",
        f"\\input{{|touch {sentinel}}}",
        f"\\text{{__import__('os').system('touch {sentinel}')}}",
        f"\\operatorname{{__import__('os').system}}(touch {sentinel})",
        f"{{{{{call}}}}}",
        f"f'{{{call}}}'",
        f"print(1);{call}",
        f"2*{call}+1",
        f"42\n{call}",
    ]
    return rng.choice(ways)


def unicode_digits(rng: random.Random, _: str) -> str:
    zeros = [0x660, 0x6F0, 0x966, 0xFF10, 0x1D7CE, 0x1D7D8, 0x2070]
    zero = rng.choice(zeros)
    number = "".join(chr(zero + rng.randrange(10)) for _ in range(rng.choice([1, 3, 30])))
    others = ["½", "²", "Ⅷ", "十二", "−5", "⁻¹", "٫", "１／２", "∞", "√２"]
    return rng.choice(
        [number, f"\\frac{{{number}}}{{{number}}}", f"2^{{{number}}}", number + rng.choice(others), rng.choice(others)]
    )


def surrogates(rng: random.Random, _: str) -> str:
    characters = ["\ud800", "\udfff", "\udc80", "\ud83d", "4", "\\frac", "{", "}", "é", "\U0001f600"]
    return "".join(rng.choices(characters, k=rng.choice([1, 10, 1000])))


def repetition(rng: random.Random, _: str) -> str:
    """What a model says that has lost its way."""
    pieces = [
        "\\(",
        "$ ",
        " 1 ",
        "\\[ ",
        "answer ",
        "Answer: ",
        "the final answer is ",
        "$1$ and ",
        "\\boxed{",
        " (1+",
        "a ",
    ]
    pieces += [
        "= 1 ",
        "</think>",
        "\\text{ cm}",
        "\\frac12",
        "x ",
        "wait, ",
        "\\sqrt",
        "\n",
        "\\",
        "a=b,",
        "one hundred ",
    ]
    return rng.choice(pieces) * rng.choice([20, 1000, 5000])


FAMILIES: tuple[Family, ...] = (
    unbalanced,
    nested,
    huge_numbers,
    digits,
    control_characters,
    code,
    unicode_digits,
    surrogates,
    repetition,
)
WRAPPINGS = (
    "{}",
    "\\boxed{{{}}}",
    "The answer is $\\boxed{{{}}}$.",
    "<think>Hm.</think> \\boxed{{{}}}",
    "Answer: {}",
    "</think>\nAnswer: {0}\n\\boxed{{{0}}}",
    "The final answer is ${}$. I hope",
    "The answer is {}",
)


def responses(number: int, sentinel: str, seed: int = SEED) -> Iterator[tuple[str, str]]:
    """(response, answer) pairs, none of which is right; what is executed of one would make the file ``sentinel``."""
    rng = random.Random(seed)
    for i in range(number):
        text = FAMILIES[i % len(FAMILIES)](rng, sentinel)
        yield rng.choice(WRAPPINGS).format(text), rng.choice(ANSWERS)
