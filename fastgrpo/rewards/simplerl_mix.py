r"""SimpleRL-Zoo's training verifier: the box, else what follows "answer is", else the last number; then math-verify."""

from fastgrpo.rewards.grading.qwen_answer import extract_answer
from fastgrpo.rewards.hf_math_verify import equal_as_boxes
from fastgrpo.rewards.known_answers import EQUIVALENT, SELF_TEST, UNBOXED_IS_RIGHT, known_answers

ASSISTANT = "<|im_start|>assistant"
STOP_WORDS = ("</s>", "<|im_end|>", "<|endoftext|>")


@known_answers(*SELF_TEST, *EQUIVALENT, UNBOXED_IS_RIGHT)
def simplerl_mix(response: str, answer: str) -> bool:
    """Whether the extracted answer equals the answer by math-verify, both of them in a box.

    Source: hkust-nlp/simpleRL-reason (branch v1) verl/utils/reward_score/hf_math_verify.py, "mix", which rewards 1 and
    0. A response without any number has the empty answer, which is wrong.
    """
    return equal_as_boxes(extract_answer(before_stop_words(response)), answer)


def before_stop_words(response: str) -> str:
    """The assistant's text up to the first end mark. The prompt is removed, since the original gets it as well."""
    text = response[response.find(ASSISTANT) :] if ASSISTANT in response else response
    for word in STOP_WORDS:
        if word in text:
            text = text.split(word, 1)[0].strip()
    return text
