"""The wrappings that public mathematics data put around a problem, and what is left without them."""

# DAPO-Math-17k puts these around every problem. JustRL trains without them (thunlp/JustRL issue 1).
DAPO_PREFIX = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_SUFFIX = '\n\nRemember to put your answer on its own line after "Answer:".'
# The second is a published slip: a format string that was never formatted (thunlp/OPD: dapo-math-17k-processed).
INSTRUCTIONS = (
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "Please reason step by step, and put your final answer within \\boxed{{}}.",
)
# SimpleRL-Zoo's (arXiv 2503.18892, figure 10; hkust-nlp/simpleRL-reason utils.py, "abel" and "qwen-boxed"): the whole
# prompt of a base model, which its rows carry. The simple one is for models that follow instructions badly.
SIMPLERL_TEMPLATES = {
    "simple": "Question:\n{problem}\nAnswer:\nLet's think step by step.\n",
    "boxed": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{problem}\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
    ),
}
_SEPARATORS = ("\n\n", "\n", " ")


def unwrap_problem(text: str, suffix: str) -> str:
    """The problem without DAPO's and JustRL's instructions and without `suffix`.

    Its own white space stays, because it tells two rows of DAPO-Math-17k apart: of an instruction goes with it only
    the one separator that was put before it.
    """
    text = text.removeprefix(DAPO_PREFIX).removesuffix(DAPO_SUFFIX)
    for instruction in (*INSTRUCTIONS, suffix.strip()):
        shorter = text.rstrip().removesuffix(instruction)
        if instruction and shorter != text.rstrip():
            separator = next((s for s in _SEPARATORS if shorter.endswith(s)), "")
            return shorter.removesuffix(separator)
    return text


def unwrap_template(text: str, template: str) -> str:
    """The problem of a text that is the whole template already, as SimpleRL-Zoo's rows are; any other text stays."""
    before, _, after = template.partition("{problem}")
    is_whole = template and text.startswith(before) and text.rstrip().endswith(after.rstrip())
    if not is_whole:
        return text
    return text.removeprefix(before) if not after else text.rstrip().removeprefix(before).removesuffix(after.rstrip())
