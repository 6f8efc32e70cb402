"""The callback for PyTorch Lightning, and docs/how_to/other_loops.md's recipe for a loop of one's own."""

import re
from pathlib import Path

import pytest

from mirigor_jax import lightning, metrics, mi
from mirigor_jax.errors import InputError


def nothing(module, images):
    return images


def test_what_is_missing_or_wrong_is_said(monkeypatch):
    with pytest.raises(InputError, match=r"measure = 'accuracy': expected metrics or information"):
        lightning.callback(nothing, [], measure="accuracy")
    with pytest.raises(InputError, match=r"every = 0"):
        lightning.callback(nothing, [], every=0)
    monkeypatch.setattr(lightning, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"lightning or pytorch_lightning is not installed: pip install lightning"):
        lightning.callback(nothing, [])


@pytest.fixture
def trained(request, tmp_path):
    """A function (options of the callback) → (the callback, what was logged, the model, its images and labels)."""
    torch = pytest.importorskip("torch")
    package = request.param
    pl = pytest.importorskip(lightning.PACKAGES[package])
    torch.manual_seed(0)
    labels = torch.arange(600) % 3
    images = torch.randn(600, 6) + 4 * torch.nn.functional.one_hot(labels, 6)

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Dropout(0.5))
            self.encoder[1].eval()  # frozen: its mode must stay as it is
            self.head = torch.nn.Linear(4, 3)

        def training_step(self, batch, _):
            assert self.training
            assert not self.encoder[1].training
            return torch.nn.functional.cross_entropy(self.head(self.encoder(batch[0])), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def encode(module, images):
        assert not module.training
        assert not torch.is_grad_enabled()
        return module.encoder(images)

    def train(epochs, **options):
        batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=200)
        watch = lightning.callback(encode, options.pop("batches", batches), package=package, **options)
        trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
                             enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
                             callbacks=[watch])  # fmt: skip
        model = Model()
        trainer.fit(model, batches)
        logged = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("mi/")}
        return watch, logged, model, images, labels

    return train


both = pytest.mark.parametrize("trained", lightning.PACKAGES, indirect=True)
advice = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and GPUs


@both
@advice
def test_it_logs_metrics_of_the_trained_encoder(trained):
    only = ("linear_accuracy", "rank_me", "class_tolerance")
    watch, *_ = trained(3, every=2, only=only)
    assert [epoch for epoch, _ in watch.results] == [1]
    watch, logged, model, images, labels = trained(2, every=2, only=only)
    expected = metrics.evaluate(model.encoder(images).detach().numpy(), labels.numpy(), only=only)
    assert logged.keys() == {f"mi/{name}" for name in only}
    assert logged == pytest.approx({f"mi/{name}": value for name, value in expected.values.items()})


@both
@advice
def test_it_logs_the_estimate_and_its_certified_ends(trained):
    watch, logged, model, images, labels = trained(2, measure="information", seed=3)
    found = mi.estimate_labels(model.encoder(images).detach().numpy(), labels.numpy(), seed=3)
    assert [epoch for epoch, _ in watch.results] == [0, 1]
    assert watch.results[-1][1] == found
    ends = {f"mi/{name}": getattr(found, name) for name in ("value_bits", "lower_bits", "upper_bits")}
    assert logged == pytest.approx(ends, abs=1e-5)


@both
@advice
def test_an_iterator_that_is_used_up_is_told(trained):
    with pytest.raises(InputError, match="there are no batches to measure on: give a list or a loader"):
        trained(1, batches=iter([]))


def test_the_recipe_for_a_loop_of_one_s_own():
    pytest.importorskip("torch")
    page = (Path(__file__).parents[1] / "docs" / "how_to" / "other_loops.md").read_text()
    [code] = re.findall(r"```python\n(# A loop.*?)```", page, re.DOTALL)
    printed = []
    exec(code, {"print": lambda *values: printed.append(values)})
    assert [epoch for epoch, _ in printed] == [2, 4]
    assert printed[-1][1].value_bits > 1
