"""A tokenizer of a few words."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
VOCAB = ["<bos>", "<eos>", "<unk>", "<user>", "<assistant>", "one", "two", "three", "?", "<system>"]


def tiny_tokenizer(chat_template=None, end=""):
    """One token a word, and a tokenizer that puts its begin token before every text, as Llama's does."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCAB)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single=f"<bos> $A {end}".strip(), special_tokens=[("<bos>", 0), ("<eos>", 1)]
    )
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    more = ["<user>", "<assistant>"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=more, **special)
    tokenizer.chat_template = chat_template
    return tokenizer
