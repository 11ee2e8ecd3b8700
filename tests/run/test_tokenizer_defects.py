"""A tokenizer with one defect at a time: the start of a run refuses it in words, or says so in one line."""

import json

import pytest

from tests.data.tokenizers import VOCAB, tiny_tokenizer
from tests.real_tokenizers import write_model
from tests.run.starting import started

EOS = 1
QUESTION = "<user> {{ messages[-1]['content'] }} "
OPENED = "{% if add_generation_prompt %}<assistant>{% endif %}"
CHAT = (
    "{{ bos_token }} {% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} "
    "{% if m['role'] == 'assistant' %}{{ eos_token }} {% endif %}{% endfor %}" + OPENED
)
STRIPPING = CHAT.replace("> {{ m['content']", ">{{ m['content'] | trim")
PROBLEMS = ["one two", "two three one", "three ?"]
TRUNCATION = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
PADDING = {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 1}
PADDING |= {"pad_type_id": 0, "pad_token": "<eos>"}


class Made:
    """A folder of a tokenizer and a model, without a defect yet, and three problems."""

    def __init__(self, folder):
        self.folder, self.data = folder, folder / "train.jsonl"
        tokenizer = tiny_tokenizer(CHAT)
        tokenizer.pad_token = "<eos>"
        tokenizer.save_pretrained(folder)
        write_model(folder, len(VOCAB), (EOS,))
        self.ask(*PROBLEMS)

    def ask(self, *problems, system=""):
        before = [{"role": "system", "content": system}] if system else []
        chats = [[*before, {"role": "user", "content": problem}] for problem in problems]
        self.data.write_text("".join(json.dumps({"prompt": chat, "answer": "2"}) + "\n" for chat in chats))

    def template(self, text):
        (self.folder / "chat_template.jinja").write_text(text)

    def change(self, name, **values):
        file = self.folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    def tokens(self, first, count, special):
        """Adds control tokens, or others, from this id on."""
        content = json.loads((self.folder / "tokenizer.json").read_text())
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
        content["added_tokens"] += [{"id": first + n, "content": f"<more{n}>", **flags} for n in range(count)]
        self.change("tokenizer.json", added_tokens=content["added_tokens"])

    def start(self, **how):
        """What is said, but for the count of problems."""
        _, inputs, said = started(self.folder, self.data, **how)
        self.ids = [p.prompt_ids.tolist() for p in inputs.train[0]]
        return said[:-1]


@pytest.fixture
def made(tmp_path):
    (tmp_path / "model").mkdir()
    return Made(tmp_path / "model")


def test_a_tokenizer_without_a_defect_is_silent_and_its_padding_may_be_its_end(made):
    assert made.start() == [] and made.ids[0][:4] == [0, 3, 5, 6]


def stops_at(made, *ends):
    made.change("generation_config.json", eos_token_id=list(ends) or None)


REFUSED = {
    "no end token": (
        lambda m: (stops_at(m), m.change("tokenizer_config.json", eos_token=None)),
        "names no end token: give --rollout.stop_token_ids",
    ),
    "an end token beyond the model": (
        lambda m: stops_at(m, 99, 100),
        r"no response of .* could end: the end tokens are 99, 100, and the model has 10 rows",
    ),
    "no template": (lambda m: (m.folder / "chat_template.jinja").unlink(), r"has no chat template.*no_chat_template"),
    "templates without a default": (
        lambda m: (m.template(""), m.change("tokenizer_config.json", chat_template=[{"name": "a", "template": CHAT}])),
        "chat template",
    ),
    "a template that ignores the message": (lambda m: m.template("<user> one " + OPENED), "same prompt for different"),
    "a template that drops the system message": (
        lambda m: (m.template(QUESTION + OPENED), m.ask(*PROBLEMS, system="three")),
        "leaves out the messages before the question",
    ),
    "a template that raises": (lambda m: m.template("{{ raise_exception('no') }}"), "raised TemplateError: no"),
    "a tokenizer larger than the model": (lambda m: m.tokens(10, 3, False), "ids up to 12, its model only 10 rows"),
    "a token of a number that is far": (lambda m: m.tokens(5000, 1, False), "ids up to 10, its model only 10 rows"),
    "a control token beyond the model in a problem": (
        lambda m: (m.tokens(10, 3, True), m.ask("one <more1> two")),
        r"row 0 has '<more1>' \(11\), and the model only 10 rows",
    ),
    "a broken template": (lambda m: m.template("{{ messages["), "raised TemplateSyntaxError"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_run_can_train_on_is_refused_in_words(made, kind):
    spoil, says = REFUSED[kind]
    spoil(made)
    with pytest.raises(ValueError, match=says):
        made.start()


SAID = {
    "another end than the model's": (lambda m: stops_at(m, 8), "tokenizer's end token '<eos>' (1) ends no response"),
    "one end beyond the model": (lambda m: stops_at(m, 1, 99), "note: 99 ends no response"),
    "a begin token twice": (lambda m: m.template("<bos> " + CHAT), "3 prompts begin with '<bos>' twice"),
    "no begin token": (lambda m: m.template(CHAT.replace("{{ bos_token }}", "")), "3 prompts begin without '<bos>'"),
    "a turn that ends with another token": (
        lambda m: m.template(CHAT.replace("{{ eos_token }}", "<user>")),
        "ends the assistant's turn with '<user>' (3), which ends no response: --rollout.stop_token_ids 3",
    ),
    "a turn that ends with words": (
        lambda m: m.template(CHAT.replace("{{ eos_token }}", "two ?")),
        "ends the assistant's turn with ' two ? ', which is no token of its own, so that it ends no response (1 does)",
    ),
    "no opened turn": (lambda m: m.template(CHAT.replace(OPENED, "")), "nothing to open the assistant's turn"),
    "stripped messages": (
        lambda m: (m.template(STRIPPING), m.ask("one", system=" two")),
        "leaves out white space around 1 problems, as row 0",
    ),
    "changed messages": (
        lambda m: m.template(CHAT.replace("m['content']", "m['content'] | replace('three', 'one')")),
        "changes what 2 problems say, as row 1",
    ),
    "a cut message": (
        lambda m: m.template(CHAT.replace("m['content']", "m['content'][:9]")),
        "changes what 3 problems say, as row 0",
    ),
    "an opened thought": (lambda m: m.template(CHAT + "<think>\n"), "opens the thought: prompts end in "),
    "a thought that is over": (lambda m: m.template(CHAT + "<think>\n\n</think>\n\n"), "has the thought over before"),
}


@pytest.mark.parametrize("kind", SAID)
def test_what_may_be_meant_is_said(made, kind):
    spoil, says = SAID[kind]
    spoil(made)
    assert [line for line in made.start() if says in line] != []


def test_a_control_token_beyond_the_model_that_no_problem_has_is_let_be(made):
    made.tokens(10, 3, True)
    assert made.start() == []


def test_an_end_of_the_configuration_is_enough_where_the_generation_settings_name_none(made):
    stops_at(made)
    made.change("config.json", eos_token_id=EOS)
    assert made.start() == []


def test_responses_that_nothing_ends_need_no_end_token(made):
    stops_at(made)
    assert made.start(ignore_eos=True) == []


@pytest.mark.parametrize("setting", [{"truncation": TRUNCATION}, {"padding": PADDING}], ids=["cut", "padded"])
@pytest.mark.parametrize("chat", [True, False])
def test_what_a_tokenizer_cuts_or_pads_of_its_own_accord_stays_whole(made, setting, chat):
    made.start(chat_template=chat)
    whole = made.ids
    made.change("tokenizer.json", **setting)
    made.start(chat_template=chat)
    assert made.ids == whole and len({len(ids) for ids in whole}) > 1  # and not all of one length
