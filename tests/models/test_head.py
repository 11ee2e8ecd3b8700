import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from fastgrpo.models.head import Head, UnknownHead, measure_head
from fastgrpo.models.tiny import tiny_config


def model_of(name: str, **settings):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(tiny_config(AutoConfig.for_model(name, **settings))).eval()


@pytest.mark.parametrize(
    ("name", "settings", "head"),
    [
        ("llama", {}, Head()),
        ("cohere", {"logit_scale": 0.0625}, Head(0.0625, None, 0.0625)),
        ("granite", {"logits_scaling": 8.0}, Head(0.125, None, 0.125)),
        ("gemma2", {"final_logit_softcapping": 30.0}, Head(1.0, 30.0)),
        ("minicpm3", {"dim_model_base": 8}, Head(0.25, None, 1.0)),  # 32 wide: hidden states are divided by 4
        ("phi", {}, Head()),  # has a bias
    ],
)
def test_a_head_is_what_the_models_own_code_does(name, settings, head):
    assert measure_head(model_of(name, **settings)) == head


class Changed(LlamaForCausalLM):
    """Does to its logits what `change` says."""

    change = staticmethod(lambda logits: logits)

    def forward(self, *inputs, **options):
        output = super().forward(*inputs, **options)
        output.logits = self.change(output.logits)
        return output


def changed(change) -> Changed:
    with torch.device("meta"):
        model = Changed(tiny_config(AutoConfig.for_model("llama"))).eval()
    model.change = change
    return model


def test_a_scale_before_a_softcap_and_one_after_it():
    assert measure_head(changed(lambda z: 7.0 * torch.tanh(0.5 * z / 7.0))) == Head(0.5, 7.0, 0.5)
    with pytest.raises(UnknownHead, match="more than a factor and a softcap"):
        measure_head(changed(lambda z: 3.0 * torch.tanh(z / 7.0) * z.abs().clamp(max=1)))


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z + torch.linspace(0, 1, z.shape[-1]),  # final_logits_bias
        lambda z: z.clamp(max=20),
        lambda z: z - z.mean(-1, keepdim=True),
        lambda z: torch.cat([z[..., :1] - 1, z[..., 1:]], -1),
        lambda z: z[..., :-1],
    ],
)
def test_what_is_no_factor_and_no_softcap_is_refused(change):
    with pytest.raises(UnknownHead):
        measure_head(changed(change))


def test_a_head_that_is_not_linear_or_has_layers_before_it_is_refused():
    model = model_of("llama")
    model.lm_head = None
    with pytest.raises(UnknownHead, match="is none"):
        measure_head(model)
    model.lm_head = nn.Sequential(nn.Linear(32, 64))
    with pytest.raises(UnknownHead, match="a Sequential"):
        measure_head(model)
    with pytest.raises(UnknownHead, match="more than one linear head"):
        measure_head(model_of("bert"))


def test_measuring_leaves_the_model_as_it_was():
    model = model_of("llama")
    measure_head(model)
    assert "forward" not in vars(model.lm_head) and "forward" not in vars(model.model)


@pytest.mark.parametrize("head", [Head(0.25, None, 1.0), Head(0.5, 7.0, 0.5), Head(2.0, 5.0, 3.0)])
def test_what_the_ops_get_gives_the_models_logprobs(head):
    from fastgrpo_kernels import linear_logprobs

    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 8), (11, 8), (11,)))
    z = head.scale * (hidden @ weight.T) + head.bias_scale * bias
    logits = z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)
    expected = torch.log_softmax(logits / 0.7, -1)[torch.arange(5), torch.arange(5)]
    got, _ = linear_logprobs(hidden, weight, torch.arange(5), entropy=False, **head.options(bias, 0.7))
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
