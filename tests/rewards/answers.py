"""Generated answers by category: ways of writing each, and ways of writing another one."""

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple


class Forms(NamedTuple):
    """One answer: all ways of writing it besides the first are equivalent, and none of ``different`` is."""

    answer: str
    equivalent: Sequence[str]
    different: Sequence[str]


def frac(value: Fraction, command: str = "\\frac") -> str:
    sign = "-" if value < 0 else ""
    return f"{sign}{command}{{{abs(value.numerator)}}}{{{value.denominator}}}"


def nearby(rng: random.Random, value: int) -> list[str]:
    """Integers that one slip makes of it."""
    slips = {value + 1, value - 1, value + 10, -value, 10 * value + rng.randrange(10), value * 2, abs(value) // 10}
    return [str(slip) for slip in sorted(slips - {value})]


def integers(rng: random.Random) -> Forms:
    value = rng.choice([-1, 1]) * rng.randrange(1, 1000)
    forms = [f" {value} ", f"${value}$", f"{value}.", f"\\text{{{value}}}", f"x={value}", f"{{{value}}}", f"{value}.0"]
    return Forms(str(value), forms, nearby(rng, value))


def thousands(rng: random.Random) -> Forms:
    value = rng.randrange(1000, 10**9)
    return Forms(str(value), [f"{value:,}", f"{value:,}".replace(",", "{,}"), f"{value:,}".replace(",", ",\\!")],
                 [f"{value + 1:,}", f"{value - 1000:,}", f"{value:,}".replace(",", ".", 1)])  # fmt: skip


def leading_zeros(rng: random.Random) -> Forms:
    value = rng.randrange(1, 100)
    return Forms(str(value), [f"0{value}", f"00{value}", f"+{value}"], [f"{value}0", f"0{value + 1}", f"0.{value}"])


def units(rng: random.Random) -> Forms:
    value = rng.randrange(2, 500)
    names = ["cm", "meters", "degrees", "hours", "inches"]
    forms = [f"{value}^\\circ", *(f"{value}\\text{{ {unit}}}" for unit in names), f"{value} \\text{{ cm}}^2"]
    return Forms(str(value), forms, [f"{value + 1}\\text{{ {rng.choice(names)}}}", f"{value - 1}^\\circ"])


def decimals(rng: random.Random) -> Forms:
    value = Fraction(rng.randrange(1, 1000) * 10 + rng.randrange(1, 10), 100) * rng.choice([-1, 1])
    text = f"{float(value):.2f}".rstrip("0")
    wrong = [f"{float(value) + 0.01:.2f}", f"{float(value) * 10:.1f}", f"{-float(value):.2f}"]
    return Forms(text, [f"{text}0", frac(value), f"{value.numerator}/{value.denominator}"], wrong)


def a_fraction(rng: random.Random) -> Fraction:
    while True:
        value = Fraction(rng.randrange(1, 60), rng.randrange(2, 40)) * rng.choice([-1, 1])
        if value.denominator > 1:
            return value


def fractions(rng: random.Random) -> Forms:
    value = a_fraction(rng)
    top, bottom = abs(value.numerator), value.denominator
    sign = "-" if value < 0 else ""
    forms = [
        frac(value, "\\dfrac"),
        frac(value, "\\tfrac"),
        f"{sign}{top}/{bottom}",
        f"{sign}\\frac {{{top}}} {{{bottom}}}",
    ]
    if max(top, bottom) < 10:
        forms.append(f"{sign}\\frac{top}{bottom}")
    if sign:
        forms.append(f"\\frac{{-{top}}}{{{bottom}}}")
    wrong = [frac(1 / value), frac(-value), frac(value + Fraction(1, bottom)), str(top)]
    return Forms(frac(value), forms, [form for form in wrong if form != frac(value)])


def unreduced(rng: random.Random) -> Forms:
    value = a_fraction(rng)
    times = rng.randrange(2, 6)
    sign = "-" if value < 0 else ""
    scaled = f"{sign}\\frac{{{abs(value.numerator) * times}}}{{{value.denominator * times}}}"
    wrong = f"{sign}\\frac{{{abs(value.numerator) * times + 1}}}{{{value.denominator * times}}}"
    return Forms(frac(value), [scaled], [wrong, frac(value + 1)])


def mixed_numbers(rng: random.Random) -> Forms:
    whole = rng.randrange(1, 20)
    part = abs(a_fraction(rng)) % 1
    wrong = [f"{whole + 1}{frac(part)}", f"{whole}{frac(part / 2)}", frac(whole * part)]
    forms = [f"{whole}{frac(part)}", f"{whole} {part.numerator}/{part.denominator}"]
    return Forms(frac(whole + part), forms, wrong)


def percents(rng: random.Random) -> Forms:
    value = rng.randrange(1, 100)
    forms = [f"{value}%", f"{value} \\%", f"{value}\\text{{ percent}}", f"{value}\\ \\%"]
    return Forms(f"{value}\\%", forms, [f"{value + 1}\\%", f"{value}0\\%", f"{value / 10}\\%"])


def scientific(rng: random.Random) -> Forms:
    digits, exponent = rng.randrange(101, 1000), rng.randrange(3, 9)
    mantissa = f"{digits / 100:.2f}"
    forms = [
        f"{mantissa} \\cdot 10^{{{exponent}}}",
        f"{mantissa}\\times10^{exponent}",
        str(digits * 10 ** (exponent - 2)),
    ]
    wrong = [f"{mantissa} \\times 10^{{{exponent + 1}}}", f"{(digits + 1) / 100:.2f} \\times 10^{{{exponent}}}"]
    return Forms(f"{mantissa} \\times 10^{{{exponent}}}", forms, wrong)


def surds(rng: random.Random) -> Forms:
    radicand, factor = rng.choice([2, 3, 5, 6, 7, 10]), rng.randrange(2, 10)
    one_digit = [f"{factor}\\sqrt{radicand}"] if radicand < 10 else []
    forms = [
        f"\\sqrt{{{radicand * factor**2}}}",
        f"{factor} \\cdot \\sqrt{{{radicand}}}",
        f"\\sqrt{{{radicand}}} \\cdot {factor}",
    ]
    wrong = [f"{factor}\\sqrt{{{radicand + 5}}}", f"{factor + 1}\\sqrt{{{radicand}}}", f"\\sqrt{{{factor * radicand}}}"]
    return Forms(f"{factor}\\sqrt{{{radicand}}}", forms + one_digit, wrong)


def sums_of_surds(rng: random.Random) -> Forms:
    whole, radicand, bottom = rng.randrange(1, 20), rng.choice([2, 3, 5, 7]), rng.randrange(2, 9)
    root = f"\\sqrt{{{radicand}}}"
    forms = [f"\\frac{{{root}+{whole}}}{{{bottom}}}", f"\\frac{{{whole}}}{{{bottom}}}+\\frac{{{root}}}{{{bottom}}}"]
    forms.append(f"({whole}+{root})/{bottom}")
    wrong = [
        f"\\frac{{{whole}-{root}}}{{{bottom}}}",
        f"{whole}+\\frac{{{root}}}{{{bottom}}}",
        f"\\frac{{{whole + 1}+{root}}}{{{bottom}}}",
    ]
    return Forms(f"\\frac{{{whole}+{root}}}{{{bottom}}}", forms, wrong)


def multiples_of_pi(rng: random.Random) -> Forms:
    value = a_fraction(rng)
    top, bottom = value.numerator, value.denominator
    forms = [
        f"{frac(value)}\\pi",
        f"{top}\\pi/{bottom}",
        f"\\dfrac{{{top}\\pi}}{{{bottom}}}",
        f"\\frac{{{top} \\pi}}{{{bottom}}}",
    ]
    wrong = [f"\\frac{{{top + bottom}\\pi}}{{{bottom}}}", frac(value), f"\\frac{{{top}}}{{{bottom}\\pi}}"]
    return Forms(f"\\frac{{{top}\\pi}}{{{bottom}}}", forms, wrong)


def tuples(rng: random.Random) -> Forms:
    a, b, c = rng.sample(range(-20, 20), 3)
    forms = [f"({a}, {b}, {c})", f"\\left({a},{b},{c}\\right)", f"( {a} , {b} , {c} )", f"({a},\\ {b},\\ {c})"]
    return Forms(
        f"({a},{b},{c})", forms, [f"({b},{a},{c})", f"({a},{b})", f"({a},{b},{c + 50})", f"({a},{b},{-c - 40})"]
    )


def intervals(rng: random.Random) -> Forms:
    a = rng.randrange(-20, 20)
    b = a + rng.randrange(1, 20)
    forms = [f"[{a}, {b})", f"\\left[{a},{b}\\right)", f"[{a},\\,{b})", f"[{2 * a}/2,{b})"]
    return Forms(f"[{a},{b})", forms, [f"({a},{b})", f"[{a},{b}]", f"[{a},{b + 1})", f"({a},{b}]"])


def unions(rng: random.Random) -> Forms:
    a = rng.randrange(-20, 20)
    b = a + rng.randrange(1, 20)
    forms = [f"(-\\infty, {a}) \\cup ({b}, \\infty)", f"\\left(-\\infty,{a}\\right)\\cup\\left({b},\\infty\\right)"]
    wrong = [f"(-\\infty,{a}]\\cup({b},\\infty)", f"(-\\infty,{a})\\cup({b + 1},\\infty)", f"({a},{b})"]
    return Forms(f"(-\\infty,{a})\\cup({b},\\infty)", forms, wrong)


def sets(rng: random.Random) -> Forms:
    a, b, c = sorted(rng.sample(range(-20, 20), 3))
    forms = [f"\\{{{a}, {b}, {c}\\}}", f"\\{{{c},{a},{b}\\}}", f"\\left\\{{{b},{a},{c}\\right\\}}"]
    return Forms(
        f"\\{{{a},{b},{c}\\}}", forms, [f"\\{{{a},{b}\\}}", f"\\{{{a},{b},{c + 1}\\}}", f"\\{{{a - 1},{b},{c}\\}}"]
    )


def polynomials(rng: random.Random) -> Forms:
    a, b = rng.sample(range(1, 12), 2)
    expanded = f"x^2+{a + b}x+{a * b}"
    forms = [f"(x+{a})(x+{b})", f"{a * b}+{a + b}x+x^2", f"x^2 + {a + b} x + {a * b}", f"x^{{2}}+{a + b}x+{a * b}"]
    wrong = [f"(x+{a})(x-{b})", f"x^2+{a + b + 1}x+{a * b}", f"x^2-{a + b}x+{a * b}", f"(x+{a})^2(x+{b})"]
    return Forms(expanded, forms, wrong)


def rational_functions(rng: random.Random) -> Forms:
    a, b = rng.sample(range(1, 12), 2)
    forms = [
        f"\\frac{{{a}+x}}{{{b}+x}}",
        f"(x+{a})/(x+{b})",
        f"1+\\frac{{{a - b}}}{{x+{b}}}",
        f"\\dfrac{{x+{a}}}{{x+{b}}}",
    ]
    wrong = [f"\\frac{{x+{b}}}{{x+{a}}}", f"x+\\frac{{{a}}}{{x+{b}}}", f"\\frac{{x-{a}}}{{x+{b}}}"]
    return Forms(f"\\frac{{x+{a}}}{{x+{b}}}", forms, wrong)


def powers(rng: random.Random) -> Forms:
    base, exponent = rng.randrange(2, 10), rng.randrange(10, 40)
    forms = [f"{base}^{exponent}" if exponent < 10 else f"{base} ^ {{{exponent}}}", str(base**exponent)]
    forms.append(f"{base} \\cdot {base}^{{{exponent - 1}}}")
    wrong = [f"{base}^{{{exponent + 1}}}", f"{exponent}^{{{base}}}", str(base**exponent + 1)]
    return Forms(f"{base}^{{{exponent}}}", forms, wrong)


def complex_numbers(rng: random.Random) -> Forms:
    a, b = rng.randrange(1, 20), rng.randrange(2, 20)
    return Forms(f"{a}+{b}i", [f"{a} + {b}i", f"{b}i+{a}", f"{a}+{b} i"], [f"{a}-{b}i", f"{b}+{a + 20}i", f"{a}+{b}"])


def equations(rng: random.Random) -> Forms:
    a, b = rng.randrange(2, 20), rng.randrange(1, 20)
    forms = [f"y = {a}x + {b}", f"y={b}+{a}x", f"y-{b}={a}x"]
    return Forms(f"y={a}x+{b}", forms, [f"y={a}x-{b}", f"y={a + 1}x+{b}", f"x={a}y+{b}"])


def words(rng: random.Random) -> Forms:
    name, other = rng.sample(["Evelyn", "Friday", "east", "parabola", "ellipse", "Yes", "No", "blue", "odd"], 2)
    forms = [f"\\text{{ {name}}}", name, f"\\text{{{name.lower()}}}", f"\\textbf{{{name}}}", f"\\mathrm{{{name}}}"]
    return Forms(f"\\text{{{name}}}", forms, [f"\\text{{{other}}}", other, f"\\text{{not {name}}}"])


def choices(rng: random.Random) -> Forms:
    letter, other = rng.sample("ABCDE", 2)
    return Forms(letter, [f"\\text{{{letter}}}", f"\\textbf{{{letter}}}", f"\\text{{({letter})}}", f"({letter})"],
                 [other, f"\\text{{{other}}}", f"({other})"])  # fmt: skip


def matrices(rng: random.Random) -> Forms:
    a, b, c, d = rng.sample(range(-9, 10), 4)
    rows = f"{a} & {b} \\\\ {c} & {d}"
    forms = [f"\\begin{{bmatrix}} {rows} \\end{{bmatrix}}", f"\\begin{{pmatrix}}{a}&{b}\\\\{c}&{d}\\end{{pmatrix}}"]
    wrong = [f"{b} & {a} \\\\ {c} & {d}", f"{a} & {b} \\\\ {c} & {d + 20}", f"{a} & {b} & {c} & {d}"]
    return Forms(
        f"\\begin{{pmatrix}} {rows} \\end{{pmatrix}}",
        forms,
        [f"\\begin{{pmatrix}} {w} \\end{{pmatrix}}" for w in wrong],
    )


GENERATORS: dict[str, Callable[[random.Random], Forms]] = {
    "integers": integers,
    "integers with thousands separators": thousands,
    "integers with leading zeros or +": leading_zeros,
    "integers with units": units,
    "decimals": decimals,
    "fractions": fractions,
    "unreduced fractions": unreduced,
    "mixed numbers": mixed_numbers,
    "percents": percents,
    "scientific notation": scientific,
    "surds": surds,
    "sums with surds": sums_of_surds,
    "multiples of pi": multiples_of_pi,
    "large powers": powers,
    "complex numbers": complex_numbers,
    "polynomials": polynomials,
    "rational functions": rational_functions,
    "equations": equations,
    "tuples": tuples,
    "intervals": intervals,
    "unions of intervals": unions,
    "sets": sets,
    "matrices": matrices,
    "words": words,
    "choices": choices,
}
