"""Learning from a teacher's outputs beside the labels."""

from __future__ import annotations

import copy

import pytest
import torch
from small_training import equal, net, settings, still, trained
from torch import Tensor, nn

from ticket_export.errors import TrainError
from ticket_export.train.distill import Distill


def distill(teacher: nn.Module, weight: float = 0.5, temperature: float = 2.0) -> Distill:
    return Distill(teacher=teacher, weight=weight, temperature=temperature)


def test_the_loss_is_the_papers_sum_of_hard_and_soft_parts() -> None:
    student, teacher = torch.tensor([[1.0, -1.0], [0.5, 0.0]]), torch.tensor([[2.0, 0.0], [-1.0, 3.0]])
    hard = torch.tensor(0.7)
    soft_teacher, soft_student = (torch.softmax(logits / 4, 1) for logits in (teacher, student))
    kl = (soft_teacher * (soft_teacher / soft_student).log()).sum(1).mean()
    expected = 0.75 * 0.7 + 0.25 * 16 * kl
    assert distill(net(), 0.25, 4.0).loss(hard, student, teacher).item() == pytest.approx(expected.item())


def test_the_soft_part_pulls_towards_the_teacher_as_strongly_at_any_temperature() -> None:
    def gradient(temperature: float) -> Tensor:
        logits = torch.tensor([[0.1, -0.1, 0.0]], requires_grad=True)
        teacher = torch.tensor([[0.3, 0.0, -0.3]])
        distill(net(), 1.0, temperature).loss(torch.tensor(0.0), logits, teacher).backward()
        assert logits.grad is not None
        return logits.grad

    cold, hot = gradient(1.0), gradient(20.0)
    torch.testing.assert_close(cold, hot, rtol=0.2, atol=0.01)
    assert (hot[0, 0] < 0) & (hot[0, 2] > 0)  # down the gradient: nearer to the teacher


def test_a_student_that_is_its_teacher_has_no_soft_loss() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert distill(net(), 1.0, 3.0).loss(torch.tensor(9.0), logits, logits).item() == pytest.approx(
        0, abs=1e-6
    )


def test_the_teacher_stays_as_it_is_and_where_it_is() -> None:
    teacher = net(3)
    teacher.bn1.eval()
    before = copy.deepcopy(teacher.state_dict())
    trained(teacher=distill(teacher))
    assert equal(teacher.state_dict(), before)
    assert teacher.training
    assert not teacher.bn1.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())


def test_a_network_may_teach_the_copy_of_itself_that_is_trained() -> None:
    model = net()
    alone = trained(net(), teacher=distill(net()))
    assert equal(trained(model, teacher=distill(model)).weights, alone.weights)


def test_a_student_learns_what_only_the_teacher_knows() -> None:
    """With all weight on the soft labels the student ends nearer to a teacher that is wrong on purpose."""

    class Shifted(nn.Module):
        """Always the class after the right one, as a trained network sees it."""

        def __init__(self, trained_net: nn.Module) -> None:
            super().__init__()
            self.inner = trained_net

        def forward(self, x_NCHW: Tensor) -> Tensor:
            return 3 * self.inner(x_NCHW).roll(1, 1)

    knowing = still()
    made = settings(epochs=20, lr=0.1)
    assert trained(knowing, made).val_accuracy > 0.9
    result = trained(net(4), made, teacher=distill(Shifted(knowing), 1.0, 1.0))
    assert result.val_accuracy < 0.1


def test_the_told_loss_is_the_whole_loss() -> None:
    made = settings(epochs=1, lr=1e-30, schedule="constant")
    plain = trained(still(), made).history[0]["train_loss"]
    far = still(7)
    with torch.no_grad():
        far.linear.weight.mul_(50)
    soft = trained(still(), made, teacher=distill(far, 1.0, 1.0)).history[0]["train_loss"]
    half = trained(still(), made, teacher=distill(far, 0.5, 1.0)).history[0]["train_loss"]
    assert half == pytest.approx((plain + soft) / 2, rel=1e-6)
    assert abs(soft - plain) > 0.1  # so that half of each is neither


@pytest.mark.parametrize("changed", [{"precision": "bf16"}, {"precision": "fp16"}, {"channels_last": True}])
def test_teacher_and_student_run_in_one_precision_and_memory_order(changed: dict[str, object]) -> None:
    seen: list[tuple[torch.dtype, bool]] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net(1)

        def forward(self, x_NCHW: Tensor) -> Tensor:
            logits_NK = self.inner(x_NCHW)
            seen.append((logits_NK.dtype, torch.is_grad_enabled()))
            return logits_NK

    made = settings(epochs=1, **changed)
    result = trained(made=made, teacher=distill(Spy()))
    expected = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(
        str(changed.get("precision")), torch.float32
    )
    assert seen[-1] == (expected, False)
    assert len(seen) == 5  # four steps, and a look at its output before
    assert all(value.dtype == torch.float32 for value in result.weights.values() if value.is_floating_point())


def test_a_teacher_is_used_in_eval_mode() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(36, 3))
    first = trained(teacher=distill(teacher))
    assert equal(first.weights, trained(teacher=distill(teacher.eval())).weights)


def test_a_teacher_of_another_type_is_cast_to_the_students() -> None:
    teacher = net(1)
    single = trained(net().double(), teacher=distill(teacher))
    assert equal(single.weights, trained(net().double(), teacher=distill(net(1).double())).weights)


def test_a_teacher_of_other_classes_is_refused() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    with pytest.raises(TrainError, match="Sequential tells 5 classes apart, the network 3"):
        trained(teacher=distill(teacher))


@pytest.mark.parametrize(
    ("weight", "temperature", "text"),
    [
        (0.0, 2.0, r"weight is 0\.0"),
        (1.5, 2.0, r"weight is 1\.5"),
        (0.5, 0.0, r"temperature is 0\.0"),
        (0.5, float("nan"), "temperature is nan"),
    ],
)
def test_numbers_out_of_range_are_refused(weight: float, temperature: float, text: str) -> None:
    with pytest.raises(TrainError, match=text):
        distill(net(), weight, temperature)
